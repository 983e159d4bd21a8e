"""Hierarchical mixtures of experts: a tree of gates above the experts, by EM or on-line."""
