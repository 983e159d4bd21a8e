"""How many experts? Log-likelihood, AIC, BIC, ICL and cross-validation over a range of numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv

from mixtura.classical.checks import check_choice
from mixtura.errors import UserError

Criterion = Literal["log_likelihood", "aic", "bic", "icl", "cv"]
CRITERIA = ("log_likelihood", "aic", "bic", "icl", "cv")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The figures of one number of experts; `cv` is the mean held-out log-density, nats per row, NaN if not asked for.

    Example:
        >>> Candidate(n_experts=2, n_parameters=7, log_likelihood=-10.0, aic=34.0, bic=36.0, icl=37.0, cv=-1.1).bic
        36.0
    """

    n_experts: int
    n_parameters: int
    log_likelihood: float
    aic: float
    bic: float
    icl: float
    cv: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """All candidates, the chosen number and the model with it, fitted to all rows.

    Example:
        >>> Selection(candidates=(), criterion="bic", n_experts=2, model=None).n_experts
        2
    """

    candidates: tuple[Candidate, ...]
    criterion: Criterion
    n_experts: int
    model: Any

    def __str__(self) -> str:
        lines = ["experts  parameters  log-likelihood         AIC         BIC         ICL    CV/row"]
        lines += [
            f"{c.n_experts:7d}  {c.n_parameters:10d}  {c.log_likelihood:14.3f}  {c.aic:10.2f}  {c.bic:10.2f}  "
            f"{c.icl:10.2f}  {c.cv:8.4f}{' *' if c.n_experts == self.n_experts else ''}"
            for c in self.candidates
        ]
        return "\n".join(lines)


def select_n_experts(
    model: Any,
    X: Any,
    y: Any,
    *,
    n_experts: Iterable[int] = range(1, 7),
    criterion: Criterion = "bic",
    cv: Any = None,
    sample_weight: Any = None,
) -> Selection:
    """Fit the model with each number of experts and choose the best by a criterion.

    Args:
        model: an unfitted MoERegressor or MoEClassifier; its `expert` may not be a list.
        X: (n_samples, n_features).
        y: the targets.
        n_experts: the numbers to try.
        criterion: "aic", "bic" or "icl" (lowest wins), "cv" (highest held-out log-density) or "log_likelihood".
        cv: folds for cross-validation, as in scikit-learn; None cross-validates (5 folds) only if it is the criterion.
        sample_weight: (n_samples,), non-negative; held-out rows are weighted too.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.05 * np.sin(50 * X[:, 0])
        >>> select_n_experts(MoERegressor(random_state=0), X, y, n_experts=[1, 2]).n_experts
        2
    """
    check_choice("criterion", criterion, CRITERIA)
    if "n_experts" not in model.get_params(deep=False):
        raise UserError(f"expected a model with n_experts, got {model!r}; a hierarchy grows by max_leaves instead")
    if not isinstance(n_experts, Iterable) or not (counts := list(n_experts)):
        raise UserError(f"expected numbers of experts to try, got {n_experts!r}; pass for example range(1, 7)")
    folds = None
    if cv is not None or criterion == "cv":
        splitter = check_cv(5 if cv is None else cv, y, classifier=is_classifier(model))
        folds = list(splitter.split(np.zeros(len(y)), y))
    models, candidates = [], []
    for count in counts:
        fitted = clone(model).set_params(n_experts=count).fit(X, y, sample_weight=sample_weight)
        models.append(fitted)
        held_out = float("nan") if folds is None else _held_out(fitted, X, y, folds=folds, sample_weight=sample_weight)
        candidates.append(
            Candidate(
                n_experts=count,
                n_parameters=fitted.n_parameters_,
                log_likelihood=fitted.log_likelihood_,
                aic=fitted.aic(X, y, sample_weight=sample_weight),
                bic=fitted.bic(X, y, sample_weight=sample_weight),
                icl=fitted.icl(X, y, sample_weight=sample_weight),
                cv=held_out,
            )
        )
    sign = 1.0 if criterion in ("cv", "log_likelihood") else -1.0
    best = int(np.argmax([sign * getattr(candidate, criterion) for candidate in candidates]))
    return Selection(candidates=tuple(candidates), criterion=criterion, n_experts=counts[best], model=models[best])


def _held_out(model: Any, X: Any, y: Any, *, folds: list[Any], sample_weight: Any) -> float:
    take = X.iloc.__getitem__ if hasattr(X, "iloc") else np.asarray(X).__getitem__
    targets = np.asarray(y)
    weight = np.ones(len(targets)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    total = 0.0
    for train, test in folds:
        fitted = clone(model).fit(take(train), targets[train], sample_weight=weight[train])
        total += float(weight[test] @ fitted.log_density(take(test), targets[test]))
    return total / float(sum(weight[test].sum() for _, test in folds))
