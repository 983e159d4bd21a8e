import base64

import pytest

from mixtura.observe.panels import Panel, panel_figure, picture, read_panel

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
HEAT = {"kind": "heatmap", "title": "gates", "columns": ["e0", "e1"], "rows": ["like"], "values": [[0.25, None]]}
LINES = {"kind": "lines", "title": "capacity", "columns": [0.5, 1], "rows": ["by score"], "values": [[0.8, 0.9]]}


def test_a_table_becomes_texts():
    table = {"kind": "table", "title": "t", "columns": ["a", "b"], "rows": [[0.123456, None], ["<b>", float("nan")]]}
    assert read_panel(table).rows == [["0.1235", ""], ["<b>", "not a number"]]
    assert panel_figure(read_panel(table)) is None


def test_a_heat_map_and_curves_are_plots():
    heat = panel_figure(read_panel(HEAT))
    assert heat["data"][0]["z"] == [[0.25, None]]
    assert heat["layout"]["yaxis"]["ticktext"] == ["like"]
    lines = panel_figure(read_panel({**LINES, "axis": "C"}))
    assert (lines["data"][0]["x"], lines["data"][0]["y"]) == ([0.5, 1.0], [0.8, 0.9])
    assert lines["layout"]["xaxis"]["title"]["text"] == "C"


def test_names_are_texts_and_not_markup():
    figure = panel_figure(read_panel({**HEAT, "rows": ["<img src=x>"], "columns": ["<b>", "&"]}))
    assert "<" not in "".join(figure["layout"]["yaxis"]["ticktext"] + figure["layout"]["xaxis"]["ticktext"])


def test_a_picture_is_a_png_file_and_nothing_else():
    assert base64.b64decode(read_panel(picture("p", PNG, note="n")).png) == PNG
    for png in ('"><script>', base64.b64encode(b"<svg onload=x>").decode(), base64.b64encode(PNG).decode() + "'"):
        with pytest.raises(ValueError, match="picture"):
            read_panel({"kind": "picture", "title": "p", "png": png})


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ({"kind": "film", "title": "t"}, "kind 'film'"),
        ({"kind": "table", "title": "t", "columns": ["a"], "rows": [[1, 2]]}, "not 1 cells"),
        ({**HEAT, "values": [[0.5]]}, "not 1 x 2"),
        ({**LINES, "rows": []}, "not 0 x 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(panel, message):
    with pytest.raises(ValueError, match=message):
        read_panel(panel)


def test_every_kind_has_a_default():
    assert Panel(kind="lines", title="t").values == ()
