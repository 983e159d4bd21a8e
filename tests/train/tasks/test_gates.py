"""Panels: gates by class, by hand."""

import torch

from mixtura.multitask import Prediction
from mixtura.train.data.schema import Label, Schema
from mixtura.train.tasks.gates import panels
from mixtura.train.tasks.network import NetworkConfig
from mixtura.train.tasks.tabular import Rows, TabularConfig, TabularTask

LABEL = Label(name="click", kind="binary", classes=("no", "yes"))


class Told(TabularTask):
    """A task whose model says what is written here."""

    def predict(self, model):
        gate = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.2, 0.8]])
        return Prediction(tasks=model.network.tasks, scores={}, gates=({"click": gate},))


def test_mean_weights_of_all_rows_and_of_each_class():
    model = NetworkConfig(num_experts=2, numbers=1, names=("click",), kinds=("binary",), classes=(2,)).build()
    label = {"click": torch.tensor([0.0, 0.0, torch.nan])}
    rows = Rows(categories_BC=torch.zeros(3, 0), numbers_BM=torch.zeros(3, 1), labels=label, weight_B=torch.ones(3))
    schema = Schema(categories=(), numbers=(), labels=(LABEL,))
    task = Told(config=TabularConfig(), schema=schema, train=rows, val=rows, notes=(["a: 1"], ["b: 2"]))
    gates, weights, counted = panels(model, task)
    assert gates["columns"] == ["shared 0", "shared 1"]
    assert gates["rows"] == ["click", "click = no"]
    assert gates["values"] == [[0.6, 0.4], [0.8, 0.2]]
    assert weights["rows"] == [["click", 1.0]]
    assert counted["rows"] == [["training", "a: 1"], ["held out", "b: 2"]]
