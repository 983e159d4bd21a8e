"""Histogram tree and deviance tree: what is drawn where."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from mixtura.classical import HMERegressor
from mixtura.classical.hierarchy.plot import plot_tree, positions
from mixtura.errors import UserError
from tests.classical.hierarchy.samples import four_lines


@pytest.fixture(scope="module")
def model():
    X, y = four_lines()
    return HMERegressor(2, n_init=2, random_state=0).fit(X, y), X, y


def test_leaves_stand_side_by_side_and_gates_above_their_middle(model):
    fitted, _, _ = model
    expected = [(1.5, 0.0), (0.5, -1.0), (0.0, -2.0), (1.0, -2.0), (2.5, -1.0), (2.0, -2.0), (3.0, -2.0)]
    assert positions(fitted.to_tree()) == expected


def test_histograms_are_bars_of_square_root_height(model):
    fitted, X, y = model
    axes = fitted.plot_tree(X, y)
    bars = [patch.get_height() for patch in axes.patches]
    assert len(bars) == 7 * (1 + 10)
    assert len(axes.lines) == 6
    assert [text.get_text() for text in axes.texts][:4] == ["gate 0", "gate 1", "leaf 0", "leaf 1"]
    shares = (np.array(bars[1:11]) / bars[0] / 0.92) ** 2
    np.testing.assert_allclose(shares, fitted.to_tree(X, y).nodes[0].histogram, atol=1e-12)


def test_deviances_are_written_on_given_axes(model):
    fitted, X, y = model
    axes = Figure().subplots()
    assert fitted.plot_tree(X, y, kind="deviance", axes=axes) is axes
    root = fitted.to_tree(X, y).nodes[0]
    assert axes.texts[0].get_text() == f"gate 0\n100% of rows\ndeviance {root.deviance:.3g}\nbelow {root.below:.3g}"
    assert axes.texts[-1].get_text().startswith("leaf 3\n")
    assert len(axes.texts) == 7


def test_trees_without_measures_are_refused(model):
    fitted, X, _ = model
    with pytest.raises(UserError, match="to_tree"):
        plot_tree(fitted.to_tree())
    with pytest.raises(UserError, match="to_tree"):
        plot_tree(fitted.to_tree(X), kind="deviance")
    with pytest.raises(UserError, match="kind"):
        plot_tree(fitted.to_tree(X), kind="pie")
