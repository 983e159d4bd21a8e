import numpy as np
import pytest

from mixtura.classical.checks import check_at_least, check_choice, check_size, check_truth, check_whole
from mixtura.errors import UserError


@pytest.mark.parametrize("value", [-1, np.nan, np.inf, "1", None])
def test_numbers_below_are_refused(value):
    with pytest.raises(UserError, match="expected alpha a finite number of at least 0, got"):
        check_at_least("alpha", value, 0)


@pytest.mark.parametrize("value", [0, 1.0, True, "2", None])
def test_what_is_not_whole_is_refused(value):
    with pytest.raises(UserError, match="expected n_init a whole number of at least 1, got"):
        check_whole("n_init", value, 1)


def test_good_values_pass():
    check_at_least("alpha", np.float32(0.5), 0)
    check_whole("n_init", np.int64(3), 1)
    check_choice("pooling", "vote", ("weighted", "vote"))


@pytest.mark.parametrize("value", ["votes", None, 1])
def test_other_choices_are_refused(value):
    with pytest.raises(UserError, match="expected pooling one of weighted, vote, got"):
        check_choice("pooling", value, ("weighted", "vote"))


@pytest.mark.parametrize("value", ["no", 1, None])
def test_what_is_no_truth_is_refused(value):
    with pytest.raises(UserError, match="expected prune True or False, got"):
        check_truth("prune", value)


@pytest.mark.parametrize("value", [1e151, -1e200, np.inf])
def test_sizes_without_a_square_are_refused(value):
    with pytest.raises(UserError, match=r"expected X at most 1e.150 in size, got .*; rescale it"):
        check_size("X", np.array([[0.0, value]]))
    check_size("X", np.array([[-1e150], [1e150]]))
