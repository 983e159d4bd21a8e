"""Experts: what is said about the target. One file per family."""

from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.gaussian import LinearExpert

__all__ = ["ExpertFamily", "ExpertTrainer", "FittedExperts", "LinearExpert"]
