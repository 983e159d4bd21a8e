import pytest

from mixtura.errors import UserError
from mixtura.train.tasks import CONFIGS, find_config


def test_every_kind_is_found_by_the_name_it_has():
    for name in CONFIGS:
        config = find_config(name)
        assert config.task == name
        assert config.units.loss
        assert config.__name__.endswith("Config")


def test_an_unknown_kind_is_told():
    with pytest.raises(UserError, match=r"expected a task among language.*, got 'juggling'"):
        find_config("juggling")
