import json

import pytest

from mixtura.errors import UserError
from mixtura.train.config import from_dict, to_dict
from mixtura.train.optim import OptimConfig
from mixtura.train.recipes import RECIPES, get_recipe
from mixtura.train.tasks.language import LanguageConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_from_json(name):
    config = get_recipe(name)
    assert from_dict(LanguageConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_all_kinds_of_values_come_back():
    options = {"groups": 2, "center": True, "order": "x", "scale": 2.5}
    model = {"capacity_factor": 1.25, "router_options": options}
    values = {"model": model, "optim": {"lr": 1}, "prompts": ["a", "b"], "tensorboard": True}
    config = from_dict(LanguageConfig, values)
    assert config.model.capacity_factor == 1.25
    assert config.model.router_options == options
    assert config.prompts == ("a", "b")
    assert config.optim == OptimConfig(lr=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pace": 1}, "expected fields of LanguageConfig, got pace; was it written by a newer mixtura"),
        ({"steps": 2.5}, "steps: expected int, got 2.5"),
        ({"steps": False}, "steps: expected int, got False"),
        ({"out": None}, "out: expected str, got None"),
        ({"tensorboard": 1}, "tensorboard: expected bool, got 1"),
        ({"precision": ["fp32"]}, "precision: expected"),
        ({"prompts": "abc"}, "prompts: expected"),
        ({"optim": {"lr": "fast"}}, "lr: expected float, got 'fast'"),
        ({"model": {"capacity_factor": "1"}}, "capacity_factor: expected"),
        ({"model": {"router_options": {"k": None}}}, "router_options: expected"),
        ({"model": {"policy": "lottery"}}, "policy: expected"),
        ({"data": []}, "expected the fields of DataConfig"),
    ],
)
def test_values_of_another_kind_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(LanguageConfig, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"{name}: expected at least 1, got 0") for name in ("steps", "accumulate", "eval_interval")),
        ({"checkpoint_interval": -1}, "checkpoint_interval: expected at least 1, got -1"),
        *(({name: -1}, f"{name}: expected at least 0, got -1") for name in ("recompute_interval", "threads", "seed")),
        ({"seed": 1 << 32}, "seed: expected less than"),
        ({"name": ".."}, "name: expected the name of one folder"),
        ({"name": "a\\b"}, "name: expected the name of one folder"),
        ({"prompts": ("ok", "\ud800")}, "prompts: expected Unicode text"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        LanguageConfig(**changes)
