"""Experts: what is said about the target. One file per family."""
