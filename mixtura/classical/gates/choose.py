"""From what a user writes as `gate=` to a gate."""

from typing import Any

from sklearn.base import is_classifier

from mixtura.classical.division import Division
from mixtura.classical.gates.base import Gate
from mixtura.classical.gates.classifier import ClassifierGate
from mixtura.classical.gates.fixed import FixedGate
from mixtura.classical.gates.gaussian import GaussianGate
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from mixtura.errors import UserError

GATES: dict[str, Gate] = {
    "softmax": SoftmaxGate(),
    "polynomial": SoftmaxGate(features="polynomial"),
    "kernel": SoftmaxGate(features="kernel"),
    "gaussian": GaussianGate(),
    "constant": ConstantGate(),
}


def choose_gate(gate: Any, division: Any = None) -> Gate:
    """Give the gate that a name, a gate or a classifier stands for; "fixed" is the division itself.

    Example:
        >>> choose_gate("kernel")
        SoftmaxGate(features='kernel')
    """
    if isinstance(gate, str) and gate == "fixed":
        if not isinstance(division, Division):
            raise UserError(
                "expected a division that knows new rows for gate='fixed', got "
                f"{'none' if division is None else 'labels of the training rows'}; pass division=Centroids(), "
                "InlierOutlier(), LabelColumn(column) or ColumnGroups(groups)"
            )
        return FixedGate(division)
    if isinstance(gate, str) and gate in GATES:
        return GATES[gate]
    if isinstance(gate, Gate):
        return gate
    if hasattr(gate, "fit") and is_classifier(gate):
        return ClassifierGate(gate)
    names = ", ".join([*GATES, "fixed"])
    raise UserError(f"expected gate one of {names}, a gate or a classifier, got {gate!r}; choose one of them")
