"""Gates: who is asked where. One file per family; `GATES` maps the short names to them."""

from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate

GATES = {"softmax": SoftmaxGate, "constant": ConstantGate}

__all__ = ["GATES", "ConstantGate", "FittedGate", "Gate", "GateTrainer", "SoftmaxGate"]
