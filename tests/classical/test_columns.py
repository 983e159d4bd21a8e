import numpy as np
import pytest

from mixtura.classical.columns import Columns, blocks, linear_map


def test_blocks_cover_every_row_once():
    parts = list(blocks(1000, 2000))
    assert np.array_equal(np.concatenate([np.arange(1000)[part] for part in parts]), np.arange(1000))
    assert len(parts) > 1


@pytest.mark.parametrize("intercept", [True, False])
def test_coefficients_go_to_block_units_and_back(intercept):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3)) * [1.0, 1e-3, 1e6] + [0.0, 5.0, 1e9]
    columns = Columns.of(X, intercept=intercept)
    coef, constant = rng.normal(size=(2, 3)), rng.normal(size=2) * intercept
    weights = columns.standardise(coef, constant)
    direct = linear_map(X, coef, constant)
    np.testing.assert_allclose((weights @ columns.block(slice(0, 50))).T, direct, rtol=1e-9)
    again, constant_again = columns.restore(weights)
    np.testing.assert_allclose(again, coef)
    np.testing.assert_allclose(linear_map(X, again, constant_again), direct, rtol=1e-9)


def test_blocks_are_standardised_by_weight():
    X = np.array([[1.0], [5.0], [9.0]])
    columns = Columns.of(X, sample_weight=np.array([1.0, 0.0, 1.0]))
    assert columns.center == 5.0
    assert columns.scale == 4.0
    assert columns.block(slice(0, 3)).tolist() == [[-1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e300])
def test_a_constant_column_keeps_its_scale(value):
    columns = Columns.of(np.full((7, 1), value))
    assert columns.scale == 1.0
    np.testing.assert_allclose(columns.block(slice(0, 7))[0] / max(value, 1.0), 0.0, atol=1e-15)
