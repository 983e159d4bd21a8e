import sys

import numpy as np
import pandas as pd
import pytest

from mixtura.classical import MoEClassifier, MoERegressor, select_n_experts
from mixtura.classical.plots import (
    hue,
    new_axes,
    plot_experts,
    plot_gate,
    plot_log_likelihood,
    plot_selection,
    rgb,
)
from mixtura.errors import UserError
from tests.classical.samples import switching


@pytest.fixture(scope="module")
def fitted():
    X, y, _ = switching(150)
    return MoERegressor(2, random_state=0, n_init=2).fit(X, y), X, y


def drawn(axes):
    axes.figure.canvas.draw()
    return axes


def test_gate_probabilities_are_drawn_over_one_column(fitted):
    model, X, _ = fitted
    axes = drawn(plot_gate(model, X))
    x, share = axes.lines[0].get_data()
    np.testing.assert_allclose(share, model.gate_proba(x[:, None])[:, 0])
    assert x.min() < X.min()
    assert x.max() > X.max()


def test_gate_regions_are_drawn_over_two_columns():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(100, 2))
    model = MoEClassifier(2, random_state=0, n_init=1, tol=1e-3).fit(X, X[:, 0] > 0)
    axes = drawn(plot_gate(model, X, X[:, 0] > 0, resolution=20))
    picture = axes.images[0].get_array()
    assert picture.shape == (20, 20, 3)
    corner = np.array([[axes.images[0].get_extent()[0], axes.images[0].get_extent()[2]]])
    np.testing.assert_allclose(picture[0, 0], model.gate_proba(corner)[0] @ rgb(2), atol=1e-6)


def test_rows_have_the_colours_of_their_experts(fitted):
    model, X, y = fitted
    axes = drawn(plot_experts(model, X, y, resolution=50))
    scatter = next(c for c in axes.collections if len(c.get_offsets()) == 150)
    np.testing.assert_allclose(
        scatter.get_facecolors()[:, :3], np.clip(model.responsibilities(X, y) @ rgb(2), 0, 1), atol=1e-6
    )
    x, mean = axes.lines[0].get_data()
    np.testing.assert_allclose(mean, model.predict(x[:, None]))


def test_the_trace_is_the_history(fitted):
    model, _, _ = fitted
    _, values = plot_log_likelihood(model).lines[0].get_data()
    np.testing.assert_array_equal(values, [step.objective for step in model.history_])


def test_criteria_are_drawn(fitted):
    _, X, y = fitted
    selection = select_n_experts(MoERegressor(random_state=0, n_init=1), X, y, n_experts=[1, 2])
    axes = drawn(plot_selection(selection))
    assert axes.lines[1].get_ydata().tolist() == [c.bic for c in selection.candidates]
    assert axes.lines[3].get_xdata()[0] == 2
    assert list(axes.get_xticks()) == [1, 2]
    assert len(axes.figure.axes) == 1


def test_what_cross_validation_said_is_drawn_at_the_right(fitted):
    _, X, y = fitted
    model = MoERegressor(random_state=0, n_init=1)
    selection = select_n_experts(model, X, y, n_experts=[1, 2], criterion="cv", cv=2)
    _, right = drawn(plot_selection(selection)).figure.axes
    assert right.lines[0].get_ydata().tolist() == [c.cv for c in selection.candidates]
    assert right.lines[0].get_ydata()[1] > right.lines[0].get_ydata()[0]


def test_given_axes_are_used(fitted):
    model, X, _ = fitted
    axes = new_axes()
    assert plot_gate(model, X, axes=axes) is axes
    assert hue(3) == hue(11)


def test_more_columns_than_a_page_has_are_refused(fitted):
    model, _, _ = fitted
    with pytest.raises(UserError, match=r"expected one or two columns to draw, .*pass columns=\[0, 1\]"):
        plot_gate(model, np.zeros((5, 3)))
    with pytest.raises(UserError, match=r"expected one column and one output to draw, .*pass column=0"):
        plot_experts(model, np.zeros((5, 3)), np.zeros(5))
    for plot in (plot_gate, plot_experts):
        with pytest.raises(UserError, match=r"expected X of two dimensions, got shape \(5,\)"):
            plot(model, np.zeros(5), np.zeros(5))


def test_of_many_columns_some_are_drawn_and_the_others_stay_at_their_medians():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "b", "c"])
    y = np.abs(frame["b"]) + 0.1 * frame["a"] + 0.01 * rng.normal(size=80)
    model = MoERegressor(2, random_state=0, n_init=1, tol=1e-3).fit(frame, y)

    def rows(**values):
        return pd.DataFrame({name: values.get(name, np.median(frame[name])) for name in frame})

    axes = drawn(plot_gate(model, frame, columns=[1]))
    x, share = axes.lines[0].get_data()
    np.testing.assert_allclose(share, model.gate_proba(rows(b=x))[:, 0])
    assert axes.get_xlabel() == "b"
    axes = drawn(plot_experts(model, frame, y, column=1))
    x, mean = axes.lines[0].get_data()
    np.testing.assert_allclose(mean, model.predict(rows(b=x)))
    axes = drawn(plot_gate(model, frame, columns=[2, 0], resolution=5))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("c", "a")
    left, right, bottom, top = axes.images[0].get_extent()
    corner = rows(c=np.array([right]), a=np.array([top]))
    np.testing.assert_allclose(axes.images[0].get_array()[-1, -1], model.gate_proba(corner)[0] @ rgb(2), atol=1e-6)
    assert left < frame["c"].min()
    assert bottom < frame["a"].min()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mixtura\[plots\]'"):
        new_axes()
