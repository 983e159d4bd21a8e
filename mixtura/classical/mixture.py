"""What the regressor and the classifier share: checks, EM, and the questions that any mixture answers."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixtura.classical.checks import check_at_least, check_size, check_truth, check_whole
from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.division import ColumnGroups, Division, given_shares
from mixtura.classical.em import Parameters, Progress, Task, responsibilities, start, temperature_at
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.mixed import split_columns
from mixtura.classical.gates.base import Gate
from mixtura.classical.gates.choose import choose_gate
from mixtura.classical.initial import soften
from mixtura.classical.restarts import best_run
from mixtura.errors import UserError


class Mixture(BaseEstimator, ABC):
    """Base of the EM mixtures: subclasses say what y may be and how experts are pooled."""

    # Whether experts that explain nothing get a second chance.
    _reseeds = True

    def _fit(self, data: Data, *, used: NDArray[np.bool_]) -> Self:
        """Run EM on checked data and keep the best run; `used` marks the rows of the user's X that data holds."""
        family, n_experts = self._experts()
        check_settings(self, data, n_experts)
        seeds = [int(s) for s in check_random_state(self.random_state).randint(2**31 - 1, size=self.n_init + 1)]
        gate = self._gate()
        if isinstance(self.division, ColumnGroups):
            family = split_columns(family, self.division.groups, n_experts=n_experts)
        task = Task(
            gate=gate.bind(data, n_experts, seed=seeds[0]),
            experts=family.bind(data, n_experts, seed=seeds[0]),
            sample_weight=data.sample_weight,
            n_experts=n_experts,
            tol=self.tol,
            max_iter=self.max_iter,
            temperature=self.temperature,
            reseed=self._reseeds and not gate.fixed,
        )
        starts = self._starts(data, n_experts, seeds=seeds, used=used)
        best, objectives = best_run(task, starts, n_jobs=self.n_jobs, verbose=self.verbose)
        best = self._refine(best, data, family=family, seed=seeds[0])
        self._keep(best, objectives)
        self._form = data.form
        return self

    def _gate(self) -> Gate:
        return choose_gate(self.gate, self.division)

    def _refine(self, best: Progress, data: Data, *, family: ExpertFamily, seed: int) -> Progress:  # noqa: ARG002  for trees
        """Go on from the best run; a hierarchy grows and prunes its tree here."""
        return best

    def _starts(
        self, data: Data, n_experts: int, *, seeds: list[int], used: NDArray[np.bool_]
    ) -> list[Callable[[], Progress]]:
        if self.warm_start and hasattr(self, "experts_"):
            if self.n_experts_ != n_experts:
                raise UserError(
                    f"expected n_experts={self.n_experts_} to go on from the last fit, got {n_experts}; "
                    "set warm_start=False"
                )
            self._check_as_before(data)
            return [partial(_go_on, data, Parameters(gate=self.gate_, experts=self.experts_))]
        division = self.division
        if division is not None and not isinstance(division, ColumnGroups):
            if isinstance(division, Division):
                shares = division.fit(data, n_experts, seed=seeds[0]).shares(data.X)
            else:
                shares = given_shares(division, len(used), n_experts)[used]
            return [partial(start, data, soften(shares), temperature=self.temperature)]
        divide = partial(_start, data, n_experts, divide=self._gate().divide, temperature=self.temperature)
        return [partial(divide, restart=i, seed=seed) for i, seed in enumerate(seeds[1:])]

    def _check_as_before(self, data: Data) -> None:
        """Refuse to go on with data of another form than those of the fit before."""
        if self._form != data.form:
            raise UserError(f"expected {self._form} to go on from the last fit, got {data.form}; fit a new model")

    def _keep(self, best: Progress, objectives: list[float]) -> None:
        assert best.best is not None
        self.gate_, self.experts_ = best.best.gate, best.best.experts.finished()
        self.n_experts_ = self.experts_.n_experts
        self.n_iter_ = len(best.steps)
        self.converged_ = best.converged
        self.log_likelihood_ = best.best_log_likelihood
        self.objective_ = best.best_objective
        self.history_ = best.steps
        self.restart_objectives_ = np.array(objectives)
        self.n_parameters_ = self.gate_.n_parameters + self.experts_.n_parameters
        for text in [*self.experts_.warnings(), *self._warnings()]:
            warnings.warn(text, ConvergenceWarning, stacklevel=4)

    def _warnings(self) -> list[str]:
        found = []
        if reseeded := sorted({k for step in self.history_ for k in step.reseeded}):
            names = ", ".join(map(str, reseeded))
            found.append(f"experts {names} explained nothing and were re-seeded with the worst-explained rows")
        if not self.converged_ and self.max_iter > 1:
            found.append(f"EM did not converge in {self.n_iter_} iterations; raise max_iter or tol")
        return found

    @abstractmethod
    def _experts(self) -> tuple[ExpertFamily, int]:
        """Give the family of experts and their number."""

    def gate_proba(self, X: Any) -> Array:
        """Give the probability with which each expert is asked, shape (n_samples, n_experts)."""
        checked = self._checked(X)
        return np.exp(self.gate_.log_proba(checked))

    def responsibilities(self, X: Any, y: Any) -> Array:
        """Give the posterior probability of each expert, having seen the target, shape (n_samples, n_experts)."""
        return responsibilities(self._log_joint(X, y))[0]

    def log_density(self, X: Any, y: Any) -> Array:
        """Give the log-density (of labels and counts: log-probability) of each target, in nats, shape (n_samples,)."""
        return responsibilities(self._log_joint(X, y))[1]

    def aic(self, X: Any, y: Any, *, sample_weight: Any = None) -> float:
        """Give Akaike's criterion, -2 log-likelihood + 2 parameters; lower is better.

        The likelihood is the one that EM maximises: of y given X, and of X too where the gate models it.
        """
        return 2.0 * self.n_parameters_ - 2.0 * self._log_likelihood(X, y, sample_weight)[0]

    def bic(self, X: Any, y: Any, *, sample_weight: Any = None) -> float:
        """Give the Bayesian criterion, -2 log-likelihood + log(n) parameters; lower is better."""
        log_likelihood, total = self._log_likelihood(X, y, sample_weight)
        return float(np.log(total)) * self.n_parameters_ - 2.0 * log_likelihood

    def icl(self, X: Any, y: Any, *, sample_weight: Any = None) -> float:
        """Give the integrated completed likelihood: BIC plus twice the entropy of the responsibilities.

        Source: Biernacki, Celeux and Govaert (2000).
        """
        share = self.responsibilities(X, y)
        weight = np.ones(len(share)) if sample_weight is None else np.asarray(sample_weight)
        entropy = -(share * np.log(np.maximum(share, np.finfo(float).tiny))).sum(axis=1)
        return self.bic(X, y, sample_weight=sample_weight) + 2.0 * float(weight @ entropy)

    def _log_likelihood(self, X: Any, y: Any, sample_weight: Any) -> tuple[float, float]:
        checked = self._checked(X)
        log_joint = self.experts_.log_density(checked, self._target(y)) + self.gate_.log_score(checked)
        density = responsibilities(log_joint)[1]
        weight = np.ones(len(density)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return float(weight @ density), float(weight.sum())

    def _log_joint(self, X: Any, y: Any) -> Array:
        checked = self._checked(X)
        target = self._target(y)
        if len(target) != len(checked):
            raise UserError(
                f"expected as many targets as rows, got {len(target)} for {len(checked)} rows; pass the same"
            )
        log_joint = self.experts_.log_density(checked, target)
        log_joint += self.gate_.log_proba(checked)
        return log_joint

    @abstractmethod
    def _target(self, y: Any) -> NDArray[Any]:
        """Check targets and bring them into the form of the training data."""

    def _checked(self, X: Any) -> Array:
        check_is_fitted(self)
        checked: Array = validate_data(self, X, dtype=np.float64, reset=False)
        check_size("X", checked)
        return checked


def _start(
    data: Data, n_experts: int, *, divide: Callable[..., Array], restart: int, seed: int, temperature: float
) -> Progress:
    return start(data, divide(data, n_experts, restart=restart, seed=seed), temperature=temperature)


def _go_on(data: Data, parameters: Parameters) -> Progress:
    log_joint = parameters.experts.log_density(data.X, data.y)
    log_joint += parameters.gate.log_proba(data.X)
    share, _ = responsibilities(log_joint)
    return Progress(weights=share * data.sample_weight[:, None], current=parameters)


def check_settings(model: Any, data: Data, n_experts: int) -> None:
    """Refuse settings that EM cannot work with, one line each.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> check_settings(MoERegressor(), Data(X=np.ones((3, 1)), y=np.ones((3, 1)), sample_weight=np.ones(3)), 2)
    """
    if n_experts > data.n_samples:
        raise UserError(
            f"expected at least one sample per expert, got n_samples = {data.n_samples} with weight for "
            f"n_experts = {n_experts}; ask for fewer experts"
        )
    check_truth("warm_start", model.warm_start)
    check_whole("verbose", int(model.verbose) if isinstance(model.verbose, bool) else model.verbose, 0)
    check_whole("n_init", model.n_init, 1)
    check_whole("max_iter", model.max_iter, 1)
    check_at_least("tol", model.tol, 0)
    check_at_least("temperature", model.temperature, 1)
    if temperature_at(model.temperature, model.max_iter - 1) > 1.0:
        raise UserError(
            f"expected the temperature to reach 1 in max_iter = {model.max_iter} iterations, got "
            f"temperature = {model.temperature:g}; raise max_iter or lower the temperature"
        )
