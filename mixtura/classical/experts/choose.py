"""From what a user writes as `expert=` to a family of experts."""

from typing import Any

from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.errors import UserError

EXPERTS: dict[str, ExpertFamily] = {
    "linear": LinearExpert(),
    "ridge": LinearExpert(alpha=1.0),
    "polynomial": LinearExpert(degree=2),
}


def choose_experts(expert: Any, n_experts: int | None, *, task: str) -> tuple[ExpertFamily, int]:
    """Give the family that `expert` stands for and the number of experts.

    Example:
        >>> choose_experts("ridge", None, task="regression")
        (LinearExpert(alpha=1.0), 2)
    """
    count = 2 if n_experts is None else n_experts
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"expected n_experts a whole number of at least 1, got {n_experts!r}; pass one or None")
    return choose_family(expert, task=task), count


def choose_family(expert: Any, *, task: str) -> ExpertFamily:
    """Give the family that one name, family or estimator stands for.

    Example:
        >>> choose_family("linear", task="regression")
        LinearExpert()
    """
    known = [name for name, family in EXPERTS.items() if family.task == task]
    family = EXPERTS.get(expert) if isinstance(expert, str) else expert
    if not isinstance(family, ExpertFamily):
        raise UserError(f"expected expert one of {', '.join(known)} or a family, got {expert!r}; choose one of them")
    if family.task != task:
        raise UserError(f"expected an expert for {task}, got {expert!r}; choose one of {', '.join(known)}")
    return family
