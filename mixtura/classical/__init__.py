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
from mixtura.classical.gates.log_posterior import LogPosteriorGate
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from mixtura.classical.hierarchy.classifier import HMEClassifier
from mixtura.classical.hierarchy.gate import TreeGate
from mixtura.classical.hierarchy.regressor import HMERegressor
from mixtura.classical.hierarchy.tree import Tree
from mixtura.classical.regressor import MoERegressor
from mixtura.classical.selection import select_n_experts
from mixtura.classical.significance import five_by_two, mcnemar, paired_t

__all__ = [
    "Centroids",
    "ClassifierGate",
    "ColumnGroups",
    "ConstantGate",
    "EstimatorExpert",
    "GammaExpert",
    "GaussianGate",
    "HMEClassifier",
    "HMERegressor",
    "InlierOutlier",
    "LabelColumn",
    "LinearExpert",
    "LogPosteriorGate",
    "LogisticExpert",
    "MoEClassifier",
    "MoERegressor",
    "PoissonExpert",
    "SoftmaxGate",
    "StudentTExpert",
    "Tree",
    "TreeGate",
    "agreement",
    "five_by_two",
    "match_experts",
    "mcnemar",
    "paired_t",
    "select_n_experts",
]
