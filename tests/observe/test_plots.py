import json
import math
import sys

import pytest

from mixtura.errors import UserError
from mixtura.observe import plots


def curve(name, value):
    steps = list(range(len(value)))
    return plots.Curve(
        name=name, step=steps, seconds=[s / 10 for s in steps], items=[s * 64 for s in steps], value=value
    )


def test_loss_figure_switches_all_curves_between_three_clocks():
    figure = plots.loss_figure(
        curve("raw", [3.0, None, 1.0]), curve("median", [2.0] * 3), [curve("python", [1.0])], items="tokens"
    )
    assert figure.data[0].y == (3.0, None, 1.0)
    buttons = {button.label: button.args[0]["x"] for button in figure.layout.updatemenus[0].buttons}
    assert list(buttons) == ["step", "seconds", "tokens"]
    assert [list(x) for x in buttons["tokens"]] == [[0, 64, 128], [0, 64, 128], [0]]


def test_mean_validation_comes_first():
    figure = plots.loss_figure(curve("a", [1.0]), curve("b", [1.0]), [curve("python", [1.0]), curve("mean", [2.0])])
    assert [trace.name for trace in figure.data[2:]] == ["validation, mean", "validation, python"]
    assert [list(x) for x in figure.layout.updatemenus[0].buttons[0].args[0]["x"]] == [[0]] * 4


def test_heat_maps_are_centred():
    load = plots.load_figure([1, 2], [[0.0, None], [2.0, 9.0]]).data[0]
    assert (load.zmin, load.zmid, load.zmax) == (0, 1, 2)
    lift = plots.specialisation_figure(["a", "b"], [[0.5, 0.0, None], [1.5, 2.0, None]]).data[0]
    assert (lift.zmin, lift.zmid, lift.zmax) == (-2, 0, 2)
    assert [list(row) for row in lift.z] == [[-1.0, -3.0, None], [0.58, 1.0, None]]
    assert [list(row) for row in lift.customdata] == [[0.5, 0.0, None], [1.5, 2.0, None]]


@pytest.mark.parametrize("layers", [1, 8, 9, 24])
def test_lines_have_distinct_colours_and_a_key(layers):
    names = [f"blocks.{i}.ff" for i in range(layers)]
    figure = plots.lines_figure(
        dict.fromkeys(names, (1, 2)), dict.fromkeys(names, (1.0, 2.0)), title="x", level=1, note="even"
    )
    lines = [trace for trace in figure.data if trace.name in names]
    assert len({trace.line.color for trace in lines}) == layers
    bars = [trace for trace in figure.data if trace.marker.showscale]
    assert len(bars) == (layers > 8)
    assert all(trace.showlegend is (layers <= 8) for trace in lines)


def test_names_cannot_become_markup():
    ticks = plots.specialisation_figure(["<a href='https://x'>b</a>", "<i>"], [[1.0], [1.0]]).layout.yaxis.ticktext
    assert list(ticks) == ["&lt;a href='https://x'&gt;b&lt;/…", "&lt;i&gt;"]
    assert plots.lines_figure({"<b>": [1]}, {"<b>": [1.0]}, title="x").data[0].name == "&lt;b&gt;"


def test_figure_data_is_strict_json():
    data = plots.figure_data(plots.load_figure([1], [[math.inf], [1.0]]))
    assert json.loads(json.dumps(data, allow_nan=False))["data"][0]["z"] == [[None], [1.0]]


def test_missing_plotly_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(UserError, match=r"pip install 'mixtura\[train,plots\]'"):
        plots.load_figure([1], [[1.0]])
