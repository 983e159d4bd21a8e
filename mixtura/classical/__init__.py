"""Mixtures of experts by EM, with the API of scikit-learn; numpy, scipy and scikit-learn only.

Example:
    >>> import numpy as np
    >>> from mixtura.classical import MoERegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
    >>> MoERegressor(2, random_state=0).fit(X, y).predict([[-0.5], [0.25]]).round(2)
    array([0.5 , 0.25])
"""

from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from mixtura.classical.regressor import MoERegressor

__all__ = ["ConstantGate", "LinearExpert", "MoERegressor", "SoftmaxGate"]
