import pytest
import torch

from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.tasks.task import Evaluation, Outcome, autocast, device_of


def test_the_mean_of_an_outcome_is_logged_as_a_sum_without_gradient():
    loss = torch.tensor(0.25, requires_grad=True)
    outcome = Outcome.mean(loss * 2, 6, parts={"a": torch.tensor(1.0)})
    assert (outcome.total / outcome.weight).item() == 0.5
    assert outcome.loss.requires_grad
    assert not outcome.total.requires_grad
    assert (outcome.items, outcome.parts["a"].item()) == (6, 1.0)


def test_every_group_counts_once():
    assert Evaluation(losses={"a": 1.0, "b": 4.0}).with_mean()["mean"] == 2.5


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_that_of_the_configuration(precision, dtype):
    model = torch.nn.Linear(2, 2)
    with autocast(LanguageConfig(precision=precision), device_of(model)):
        assert model(torch.ones(1, 2)).dtype == dtype
