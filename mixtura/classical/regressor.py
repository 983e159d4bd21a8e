"""The mixture of experts for regression."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from mixtura.classical.checks import check_choice, check_size
from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.choose import choose_experts
from mixtura.classical.mixture import Mixture
from mixtura.classical.predictive import MixturePredictive, Pooling, Uncertainty, pool
from mixtura.errors import UserError


class MoERegressor(RegressorMixin, Mixture):
    """Mixture of experts for regression, fitted by EM.

    A gate divides the rows among experts, softly: `p(y | x) = sum_k gate_k(x) p_k(y | x)`. Both are fitted together by
    expectation-maximisation: each expert to the rows that it explains best, the gate to the experts' shares.

    Args:
        n_experts: how many; None for the number of experts listed in `expert`, or 2.
        expert: what the experts are: "linear", "ridge", "polynomial", "poisson", "gamma", "student_t", a family such as
            `LinearExpert(alpha=1.0)`, any regressor, or a list of these, one for each expert.
        gate: "softmax", "polynomial" or "kernel" (softmax on features of X), "gaussian" (joint density of X and y),
            "constant" (mixing weights), "fixed" (the division), a gate such as `SoftmaxGate(ridge=1.0)`, or any
            classifier.
        pooling: "weighted" averages the experts by the gate, "highest" asks the expert of the highest gate alone.
        division: what EM begins with instead of random divisions: `Centroids()`, `InlierOutlier()`,
            `LabelColumn(column)`, `ColumnGroups(groups)`, or an array of labels (n_samples,) or shares (n_samples,
            n_experts).
        n_init: starts of EM from different divisions; the best likelihood wins, hopeless ones are given up early.
        tol: EM stops when an iteration gains less than this, in nats per row.
        max_iter: EM iterations at most.
        temperature: start of deterministic annealing; 1 is plain EM, 2 to 20 smooths poor local maxima away.
        random_state: seed of the divisions.
        warm_start: continue from the parameters of the last fit.
        verbose: print a line every so many iterations; 0 is silent.
        n_jobs: processes for the starts, as in joblib.

    Attributes:
        experts_, gate_: the fitted experts and gate, immutable.
        n_experts_, n_iter_, converged_, n_parameters_, n_features_in_: as named.
        log_likelihood_: of the training data, weighted; objective_ is it minus the ridge penalties.
        history_: one `Step` for every iteration of the best start.
        restart_objectives_: what every start reached.

    Missing values, infinite values and sparse X are refused. A sample weight of two is a row that occurs twice.

    Source: Jacobs, Jordan, Nowlan and Hinton (1991); Jordan and Jacobs (1994).

    Example:
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> model = MoERegressor(n_experts=2, random_state=0).fit(X, y)
        >>> model.predict([[-0.5], [0.5]]).round(2)
        array([0.5, 0.5])
    """

    def __init__(
        self,
        n_experts: int | None = None,
        *,
        expert: Any = "linear",
        gate: Any = "softmax",
        pooling: Pooling = "weighted",
        division: Any = None,
        n_init: int = 3,
        tol: float = 1e-5,
        max_iter: int = 500,
        temperature: float = 1.0,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.expert = expert
        self.gate = gate
        self.pooling = pooling
        self.division = division
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.temperature = temperature
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit gate and experts.

        Args:
            X: (n_samples, n_features), array or DataFrame.
            y: (n_samples,) or (n_samples, n_outputs).
            sample_weight: (n_samples,), non-negative.
        """
        data, used = self._data(X, y, sample_weight)
        return self._fit(data, used=used)

    def _data(self, X: Any, y: Any, sample_weight: Any, *, reset: bool = True) -> tuple[Data, NDArray[np.bool_]]:
        """Check what the user passed; `used` marks the rows with weight, which alone are data."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=reset)
        check_size("X", X)
        check_size("y", np.asarray(y, dtype=np.float64))
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._squeeze = y.ndim == 1
        used = weight > 0
        X, y, weight = (X, y, weight) if used.all() else (X[used], y[used], weight[used])
        check_choice("pooling", self.pooling, ("weighted", "highest"))
        names = tuple(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        target = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        return Data(X=X, y=target, sample_weight=weight, feature_names=names), used

    def _experts(self) -> tuple[ExpertFamily, int]:
        return choose_experts(self.expert, self.n_experts, task="regression")

    def predict(self, X: Any, return_std: bool = False) -> Any:  # noqa: FBT001, FBT002  scikit-learn's own signature
        """Give the mean of the predictive distribution, shape (n_samples,) or (n_samples, n_outputs).

        With `return_std` a pair: the mean and the standard deviation.
        """
        if return_std:
            predictive = self.predictive(X)
            return predictive.mean(), np.sqrt(predictive.variance())
        checked = self._checked(X)
        gate = pool(np.exp(self.gate_.log_proba(checked)), self.pooling)
        mean = np.einsum("nk,nkm->nm", gate, self.experts_.mean(checked))
        return mean[:, 0] if self._squeeze else mean

    def expert_predict(self, X: Any) -> Array:
        """Give each expert's own prediction, shape (n_samples, n_experts) or (n_samples, n_experts, n_outputs)."""
        checked = self._checked(X)
        mean = self.experts_.mean(checked)
        return mean[:, :, 0] if self._squeeze else mean

    def predictive(self, X: Any) -> MixturePredictive:
        """Give the whole predictive distribution at X, to be asked for moments, quantiles, densities and samples."""
        checked = self._checked(X)
        gate = pool(np.exp(self.gate_.log_proba(checked)), self.pooling)
        return MixturePredictive(gate=gate, distributions=self.experts_.distributions(checked), squeeze=self._squeeze)

    def predict_quantiles(self, X: Any, quantiles: Any = (0.05, 0.5, 0.95)) -> Array:
        """Give quantiles of the predictive distribution, shape (n_samples, n_quantiles[, n_outputs])."""
        return np.moveaxis(self.predictive(X).quantile(quantiles), 0, 1)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw targets from the predictive distribution, shape (n_rows, [n_outputs,] n_samples)."""
        rng = np.random.default_rng(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        return np.moveaxis(self.predictive(X).sample(n_samples, rng=rng), 0, -1)

    def uncertainty(self, X: Any) -> Uncertainty:
        """Tell the noise, the experts' disagreement and the gate's doubt apart; see `Uncertainty`."""
        return self.predictive(X).uncertainty()

    def _target(self, y: Any) -> NDArray[Any]:
        check_is_fitted(self)
        target = np.asarray(y, dtype=np.float64)
        if not np.isfinite(target).all():
            raise UserError("expected finite targets, got NaN or infinity; leave these rows out")
        check_size("y", target)
        return target.reshape(len(target), -1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
