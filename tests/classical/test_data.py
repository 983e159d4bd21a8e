import numpy as np
import pytest

from mixtura.classical.data import Data, column_numbers, pick
from mixtura.errors import UserError


def test_classes_and_weights_are_counted():
    data = Data(
        X=np.zeros((2, 1)), y=np.array([0, 1]), sample_weight=np.array([1.0, 2.5]), classes=np.array(["a", "b"])
    )
    assert (data.n_classes, data.n_samples, data.total) == (2, 2, 3.5)


def test_columns_are_found_by_number_and_by_name():
    assert column_numbers([0, -1], 3).tolist() == [0, 2]
    assert column_numbers(["c", 0], 3, ("a", "b", "c")).tolist() == [2, 0]
    assert column_numbers(None, 3) is None


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ([3], None, "expected a column number below 3, got 3"),
        (["d"], ("a", "b", "c"), "expected a column of X, got 'd'; X has a, b, c"),
        (["a"], None, "fit on a DataFrame"),
        ("abc", ("a", "b", "c"), r"expected a list of columns, got 'abc'; write \['abc'\]"),
        (1, None, r"expected a list of columns, got 1; write \[1\]"),
        ([True, False, True], None, "got True; a mask needs np.flatnonzero"),
        ([1.5], None, "expected columns by number or name, got 1.5"),
    ],
)
def test_columns_that_are_not_there_are_refused(columns, names, message):
    with pytest.raises(UserError, match=message):
        column_numbers(columns, 3, names)


def test_picking_all_makes_no_copy():
    X = np.eye(3)
    assert pick(X, None) is X
    assert pick(X, np.array([1])).tolist() == [[0.0], [1.0], [0.0]]
