import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.device import choose_device, random_state, set_random_state


def test_random_numbers_go_on_where_they_were():
    state = random_state()
    expected = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_from_a_machine_with_more_devices_is_taken():
    state = random_state()
    set_random_state(state | {"cuda": state["cuda"] + [state["cpu"]] * 3, "mps": None})
    assert torch.equal(torch.get_rng_state(), state["cpu"])


def test_auto_is_a_device_of_this_machine():
    assert torch.ones(1, device=choose_device("auto")).item() == 1


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        choose_device("cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["abacus", "", "cpu:x", "cuda:99", "meta"])
def test_other_devices_are_refused(name):
    with pytest.raises(UserError, match=r"expected a device of this machine, got .*; try --device cpu"):
        choose_device(name)
