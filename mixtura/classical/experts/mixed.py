"""Experts of different kinds in one mixture: a family for every expert."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from mixtura.classical.columns import Array
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MixedExperts(FittedExperts):
    """Fitted experts of several kinds, one each: `parts[k]` holds expert k alone."""

    parts: tuple[FittedExperts, ...]

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.parts)

    @property
    def n_parameters(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The sum over the experts."""
        return sum(part.n_parameters for part in self.parts)

    @property
    def penalty(self) -> float:  # type: ignore[override]  # a value computed from another field, read-only
        """The sum over the experts."""
        return sum(part.penalty for part in self.parts)

    def mean(self, X: Array) -> Array:
        """Give each expert's prediction, shape (n_samples, n_experts, n_outputs)."""
        return np.concatenate([part.mean(X) for part in self.parts], axis=1)

    def log_proba(self, X: Array) -> Array:
        """Give each expert's log-probabilities, shape (n_samples, n_experts, n_classes)."""
        return np.concatenate([part.log_proba(X) for part in self.parts], axis=1)

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of y under each expert, shape (n_samples, n_experts)."""
        return np.concatenate([part.log_density(X, y) for part in self.parts], axis=1)

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's predictive distribution."""
        return [distribution for part in self.parts for distribution in part.distributions(X)]

    def warnings(self) -> list[str]:
        """Say what each expert has to say, under its own number."""
        return [
            text.replace("expert 0", f"expert {k}") for k, part in enumerate(self.parts) for text in part.warnings()
        ]

    def finished(self) -> "MixedExperts":
        """Forget what only training needed."""
        return replace(self, parts=tuple(part.finished() for part in self.parts))


class MixedExpert(ExpertFamily):
    """A list of families, one for each expert; what a list passed as `expert=` becomes."""

    def __init__(self, families: tuple[ExpertFamily, ...]) -> None:
        self.families = families

    @property
    def task(self) -> str:
        """What all of them do."""
        return self.families[0].task

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "MixedTrainer":
        """Bind each family to the data on its own."""
        assert n_experts == len(self.families)
        return MixedTrainer([family.bind(data, 1, seed=seed + k) for k, family in enumerate(self.families)])


def split_columns(family: ExpertFamily, groups: Sequence[ColumnChoice], *, n_experts: int) -> MixedExpert:
    """Give one expert for each group of columns, of the family or of its k-th member.

    Example:
        >>> from mixtura.classical.experts.gaussian import LinearExpert
        >>> [one.columns for one in split_columns(LinearExpert(), [[0], [1, 2]], n_experts=2).families]
        [[0], [1, 2]]
    """
    families = family.families if isinstance(family, MixedExpert) else (family,) * n_experts
    if len(families) != len(groups):
        raise UserError(f"expected {n_experts} groups of columns, got {len(groups)}; give one for each expert")
    pairs = zip(families, groups, strict=True)
    return MixedExpert(tuple(clone(one).set_params(columns=group) for one, group in pairs))


class MixedTrainer(ExpertTrainer):
    """Experts of several kinds bound to data."""

    def __init__(self, trainers: list[ExpertTrainer]) -> None:
        self.trainers = trainers
        self.frozen = np.concatenate([trainer.frozen for trainer in trainers])
        self.monotone = all(trainer.monotone for trainer in trainers)

    def fit(self, weights: Array, previous: FittedExperts | None) -> MixedExperts:
        """Fit each expert to its own column of weights."""
        before = previous.parts if isinstance(previous, MixedExperts) else [None] * len(self.trainers)
        parts = [trainer.fit(weights[:, [k]], before[k]) for k, trainer in enumerate(self.trainers)]
        return MixedExperts(parts=tuple(parts))

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets, shape (n_samples, n_experts)."""
        assert isinstance(experts, MixedExperts)
        pairs = zip(self.trainers, experts.parts, strict=True)
        return np.concatenate([trainer.log_density(part) for trainer, part in pairs], axis=1)
