"""Annealing: a temperature for every step."""

import math

import pytest
import torch

from mixtura import UserError
from mixtura.routers import Annealing, Dense, set_temperature


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [4.0, 3.25, 2.5, 1.75, 1.0]),
        ("exponential", [4.0, 4 / 2**0.5, 2.0, 2**0.5, 1.0]),
        ("cosine", [4.0, 2.5 + 1.5 * math.cos(math.pi / 4), 2.5, 2.5 - 1.5 * math.cos(math.pi / 4), 1.0]),
    ],
)
def test_values(shape, values):
    schedule = Annealing(start=4.0, end=1.0, steps=4, shape=shape)
    assert [schedule(step) for step in range(5)] == pytest.approx(values)
    assert schedule(1000) == 1.0


def test_it_may_rise_too():
    assert Annealing(start=1.0, end=3.0, steps=2)(1) == 2.0


def test_a_router_follows_it():
    router = Dense(3, 3, temperature=1.0)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
    schedule = Annealing(start=2.0, end=0.5, steps=10)
    for step in (0, 5, 10):
        set_temperature(router, schedule(step))
        expected = (torch.eye(3) / schedule(step)).softmax(-1)
        torch.testing.assert_close(router(torch.eye(3)).probs_TE, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "expected start above 0 and finite, got 0.0"),
        ({"end": -1.0}, "expected end above 0 and finite, got -1.0"),
        ({"end": math.inf}, "expected end above 0 and finite, got inf"),
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"shape": "round"}, "expected a shape among linear, exponential, cosine, got 'round'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(UserError, match=message):
        Annealing(**{"start": 1.0, "end": 0.5, "steps": 3, **options})


def test_steps_count_from_zero():
    with pytest.raises(UserError, match="expected a step of at least 0, got -1"):
        Annealing(start=1.0, end=0.5, steps=3)(-1)
