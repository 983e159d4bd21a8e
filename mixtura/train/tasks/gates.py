"""What the report of a run on a table shows: gates by label and class, weights of the losses, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mixtura.multitask import Prediction
from mixtura.train.data.schema import Label
from mixtura.train.tasks.network import TabularModel

if TYPE_CHECKING:
    from mixtura.train.tasks.tabular import TabularTask

MOST_CLASSES = 12


def panels(model: TabularModel, task: TabularTask) -> list[dict[str, Any]]:
    """Panels of observations.json; see `mixtura.observe.panels`."""
    said = task.predict(model)
    found = [panel for level in range(len(said.gates)) if (panel := _gates(model, task, said, level=level)) is not None]
    weights = model.balance.weights()
    found.append(
        {
            "kind": "table",
            "title": "Weights of the losses",
            "note": f"{type(model.balance).__name__}; what each label's loss is multiplied with at the end",
            "columns": ["label", "weight"],
            "rows": [[name, weight] for name, weight in weights.items()],
        }
    )
    parts = zip(("training", "held out"), task.notes, strict=True)
    found.append(
        {
            "kind": "table",
            "title": "Counted while the table was read",
            "note": "Nothing is dropped: unseen and rare categories have an entry of their own, missing values too, "
            "and a row without a label still teaches the other labels.",
            "columns": ["rows", "count"],
            "rows": [[name, note] for name, notes in parts for note in notes],
        }
    )
    return found


def _gates(model: TabularModel, task: TabularTask, said: Prediction, *, level: int) -> dict[str, Any] | None:
    gates = said.gates[level]
    if not gates:
        return None
    experts = {name: model.network.experts_of(name, level=level) for name in gates}
    columns = list(dict.fromkeys(expert for names in experts.values() for expert in names))
    rows, values = [], []
    for label in task.schema.labels:
        if label.name not in gates:
            continue
        for name, mean in _by_class(label, gates[label.name], task.val.labels[label.name]):
            weight = dict(zip(experts[label.name], mean.tolist(), strict=True))
            rows.append(name)
            values.append([round(weight[expert], 4) if expert in weight else None for expert in columns])
    return {
        "kind": "heatmap",
        "title": "Gates" if len(said.gates) == 1 else f"Gates of level {level + 1}",
        "note": "Mean weight of each expert in each label's gate over the held-out rows, of all and of each class. "
        "Rows that differ are tasks or classes that use different experts; a column that is nowhere large is an idle "
        "expert.",
        "columns": columns,
        "rows": rows,
        "values": values,
        "axis": "expert",
    }


def _by_class(label: Label, weight_NE: Tensor, label_N: Tensor) -> list[tuple[str, Tensor]]:
    found = [(label.name, weight_NE.mean(0))]
    for number, name in enumerate(label.classes[:MOST_CLASSES]):
        if (is_here := label_N == number).any():
            found.append((f"{label.name} = {name}", weight_NE[is_here].mean(0)))
    return found
