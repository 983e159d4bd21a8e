"""Mixtures of experts by EM, with the API of scikit-learn; numpy, scipy and scikit-learn only.

Example:
    >>> import numpy as np
    >>> from mixtura.classical import MoERegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
    >>> MoERegressor(2, random_state=0).fit(X, y).predict([[-0.5], [0.25]]).round(2)
    array([0.5 , 0.25])
"""

from mixtura.classical.classifier import MoEClassifier
from mixtura.classical.compare import agreement, match_experts
from mixtura.classical.division import Centroids, ColumnGroups, InlierOutlier, LabelColumn
from mixtura.classical.experts.estimator import EstimatorExpert
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.experts.glm import GammaExpert, PoissonExpert
from mixtura.classical.experts.logistic import LogisticExpert
from mixtura.classical.experts.student import StudentTExpert
from mixtura.classical.gates.classifier import ClassifierGate
from mixtura.classical.gates.gaussian import GaussianGate
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from mixtura.classical.regressor import MoERegressor
from mixtura.classical.selection import select_n_experts

__all__ = [
    "Centroids",
    "ClassifierGate",
    "ColumnGroups",
    "ConstantGate",
    "EstimatorExpert",
    "GammaExpert",
    "GaussianGate",
    "InlierOutlier",
    "LabelColumn",
    "LinearExpert",
    "LogisticExpert",
    "MoEClassifier",
    "MoERegressor",
    "PoissonExpert",
    "SoftmaxGate",
    "StudentTExpert",
    "agreement",
    "match_experts",
    "select_n_experts",
]
