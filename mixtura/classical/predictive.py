"""The predictive distribution of a mixture at new rows: moments, quantiles, density, samples, kinds of uncertainty."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy

from mixtura.classical.checks import check_whole
from mixtura.classical.columns import Array
from mixtura.errors import UserError

Pooling = Literal["weighted", "highest", "vote"]
BISECTIONS = 60


def pool(gate: Array, pooling: Pooling) -> Array:
    """Give the weights by which experts are pooled: the gate's, or all of it to the expert of the highest gate.

    Shapes: gate (n_samples, n_experts) -> the same. "vote" pools like "weighted"; what is pooled then is a label.

    Example:
        >>> pool(np.array([[0.4, 0.6]]), "highest")
        array([[0., 1.]])
    """
    return np.eye(gate.shape[1])[gate.argmax(axis=1)] if pooling == "highest" else gate


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Why a prediction is uncertain, told apart; `total = noise + between` is the predictive variance.

    Shapes: noise, between, total (n_samples,) or (n_samples, n_outputs), in squared units of y; gate_entropy
    (n_samples,), in nats, 0 where one expert is responsible alone.

    Example:
        >>> Uncertainty(noise=np.ones(1), between=np.ones(1), gate_entropy=np.zeros(1)).total
        array([2.])
    """

    noise: Array
    between: Array
    gate_entropy: Array

    @property
    def total(self) -> Array:
        """The variance of the prediction: the experts' mean noise plus the variance between their means."""
        return self.noise + self.between


@dataclass(frozen=True, kw_only=True)
class MixturePredictive:
    """The predictive distribution at some rows: gate weights and one distribution per expert.

    Shapes: gate (n_samples, n_experts); each of `distributions` (frozen ones of scipy.stats) has (n_samples,
    n_outputs). Results have (n_samples,) when `squeeze` (y was one-dimensional), else (n_samples, n_outputs). Quantiles
    and samples of several outputs are those of each output alone.

    Example:
        >>> from scipy import stats
        >>> two = [stats.norm(np.full((1, 1), m), 1.0) for m in (-3.0, 3.0)]
        >>> p = MixturePredictive(gate=np.array([[0.5, 0.5]]), distributions=two, squeeze=True)
        >>> p.mean(), p.variance(), p.quantile([0.5]).round(6) + 0.0
        (array([0.]), array([10.]), array([[0.]]))
    """

    gate: Array
    distributions: list[Any]
    squeeze: bool

    def mean(self) -> Array:
        """Give the mean."""
        return self._out(self._mean())

    def variance(self) -> Array:
        """Give the variance."""
        return self.uncertainty().total

    def uncertainty(self) -> Uncertainty:
        """Tell noise, disagreement between the experts and the gate's doubt apart."""
        mean = self._mean()
        noise, between = np.zeros_like(mean), np.zeros_like(mean)
        for weight, distribution in self._weighted():
            # An expert that is not asked may be without bounds: 0 * inf counts as 0.
            noise += weight * np.where(weight > 0, distribution.var(), 0.0)
            between += weight * np.where(weight > 0, distribution.mean() - mean, 0.0) ** 2
        entropy = -xlogy(self.gate, self.gate).sum(axis=1)
        return Uncertainty(noise=self._out(noise), between=self._out(between), gate_entropy=np.maximum(entropy, 0.0))

    def cdf(self, y: Array) -> Array:
        """Give the probability of at most y, (n_samples,) or (n_samples, n_outputs)."""
        return self._out(self._cdf(self._in(y)))

    def log_density(self, y: Array) -> Array:
        """Give the log-density (of counts: log-probability) of y under each row's mixture, shape (n_samples,)."""
        target = self._in(y)
        logs = [_log_pdf(distribution, target).sum(axis=1) for distribution in self.distributions]
        with np.errstate(divide="ignore"):
            total: Array = logsumexp(np.log(self.gate) + np.array(logs).T, axis=1)
        return total

    def quantile(self, q: Any) -> Array:
        """Give the quantiles `q`, shape (len(q), n_samples[, n_outputs]); of counts the smallest that reaches it.

        The distribution function of the mixture is inverted by bisection between the experts' own quantiles.
        """
        levels = np.atleast_1d(np.asarray(q, dtype=float))
        if not ((levels > 0) & (levels < 1)).all():
            raise UserError(f"expected quantiles between 0 and 1, got {q!r}; pass for example [0.05, 0.5, 0.95]")
        return np.stack([self._out(self._quantile(level)) for level in levels])

    def sample(self, n_samples: int = 1, *, rng: np.random.Generator) -> Array:
        """Draw `n_samples` targets for every row, shape (n_samples, n_rows[, n_outputs])."""
        check_whole("n_samples", n_samples, 1)
        drawn = np.empty((n_samples, *self._mean().shape))
        choice = (rng.uniform(size=(n_samples, len(self.gate), 1)) > np.cumsum(self.gate, axis=1)[:, :-1]).sum(axis=2)
        for k, distribution in enumerate(self.distributions):
            values = distribution.rvs(size=drawn.shape, random_state=rng)
            drawn = np.where((choice == k)[:, :, None], values, drawn)
        return drawn[:, :, 0] if self.squeeze else drawn

    def _weighted(self) -> list[tuple[Array, Any]]:
        return [(self.gate[:, k, None], distribution) for k, distribution in enumerate(self.distributions)]

    def _mean(self) -> Array:
        return np.asarray(sum(weight * distribution.mean() for weight, distribution in self._weighted()))

    def _cdf(self, y: Array) -> Array:
        return np.asarray(sum(weight * distribution.cdf(y) for weight, distribution in self._weighted()))

    def _quantile(self, level: float) -> Array:
        # An expert without weight must not widen the bracket: its quantile may lie anywhere.
        ends = np.array([d.ppf(level) * np.ones_like(self._mean()) for d in self.distributions])
        counted = (self.gate.T > 0)[:, :, None]
        low = np.where(counted, ends, np.inf).min(axis=0)
        high = np.where(counted, ends, -np.inf).max(axis=0)
        if all(_is_discrete(distribution) for distribution in self.distributions):
            low -= 1
            while (high - low > 1).any():
                middle = np.floor((low + high) / 2)
                reached = self._cdf(middle) >= level
                low, high = np.where(reached, low, middle), np.where(reached, middle, high)
            return np.asarray(high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = self._cdf(middle) >= level
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.asarray((low + high) / 2)

    def _in(self, y: Array) -> Array:
        array = np.asarray(y, dtype=np.float64)
        return array[:, None] if array.ndim == 1 else array

    def _out(self, values: Array) -> Array:
        return np.asarray(values[:, 0] if self.squeeze else values)


def _is_discrete(distribution: Any) -> bool:
    return hasattr(distribution, "pmf") and not hasattr(distribution.dist, "logpdf")


def _log_pdf(distribution: Any, y: Array) -> NDArray[np.float64]:
    return np.asarray(distribution.logpmf(y) if _is_discrete(distribution) else distribution.logpdf(y))
