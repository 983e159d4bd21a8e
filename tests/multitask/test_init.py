"""Names."""

import mixtura as mx
from mixtura import multitask


def test_every_name_is_there_and_found_lazily():
    assert mx.multitask is multitask
    assert all(hasattr(multitask, name) for name in multitask.__all__)


def test_models_by_name():
    assert multitask.MODELS["mmoe"] is multitask.MMoE
    assert all(issubclass(model, multitask.MultiTask) for model in multitask.MODELS.values())
