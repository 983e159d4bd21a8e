"""Mixtures of experts by EM, with the API of scikit-learn; numpy, scipy and scikit-learn only."""
