"""From what a user writes as `expert=` to a family of experts."""

from typing import Any

from mixtura.classical.checks import check_whole
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.estimator import EstimatorExpert
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.experts.glm import GammaExpert, PoissonExpert
from mixtura.classical.experts.logistic import LogisticExpert
from mixtura.classical.experts.mixed import MixedExpert
from mixtura.classical.experts.student import StudentTExpert
from mixtura.errors import UserError

EXPERTS: dict[str, ExpertFamily] = {
    "linear": LinearExpert(),
    "ridge": LinearExpert(alpha=1.0),
    "polynomial": LinearExpert(degree=2),
    "poisson": PoissonExpert(),
    "gamma": GammaExpert(),
    "student_t": StudentTExpert(),
    "logistic": LogisticExpert(),
}


def choose_experts(expert: Any, n_experts: int | None, *, task: str) -> tuple[ExpertFamily, int]:
    """Give the family that `expert` stands for and the number of experts.

    Example:
        >>> choose_experts("ridge", None, task="regression")
        (LinearExpert(alpha=1.0), 2)
    """
    if isinstance(expert, list | tuple):
        if not expert:
            raise UserError("expected at least one expert in the list, got an empty one; name one for each expert")
        if n_experts not in (None, len(expert)):
            raise UserError(f"expected n_experts={len(expert)}, one for each in expert, got {n_experts}; pass None")
        return MixedExpert(tuple(choose_family(one, task=task) for one in expert)), len(expert)
    count = 2 if n_experts is None else n_experts
    check_whole("n_experts", count, 1)
    return choose_family(expert, task=task), int(count)


def choose_family(expert: Any, *, task: str) -> ExpertFamily:
    """Give the family that one name, family or estimator stands for.

    Example:
        >>> from sklearn.svm import SVR
        >>> choose_family(SVR(), task="regression")
        EstimatorExpert(estimator=SVR())
    """
    known = ", ".join(name for name, family in EXPERTS.items() if family.task == task)
    family = EXPERTS.get(expert) if isinstance(expert, str) else expert
    if hasattr(family, "fit") and hasattr(family, "predict") and not isinstance(family, type):
        family = EstimatorExpert(family)
    if not isinstance(family, ExpertFamily):
        raise UserError(f"expected expert one of {known}, a family or an estimator, got {expert!r}; choose one of them")
    if family.task != task:
        raise UserError(f"expected an expert for {task}, got {expert!r}; choose one of {known} or an estimator for it")
    return family
