"""Plotly figures of a run, made from plain lists. The only file that imports plotly.

Backgrounds are transparent and the writing is of a middle grey, so that one figure is legible on a light and on a
dark page. Names come from data and plotly reads a little HTML in them, so each one is escaped here.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixtura.errors import UserError

if TYPE_CHECKING:  # optional package: only named in annotations here, imported where it is used
    from plotly.graph_objects import Figure

GREY = "#737b86"
GRID = "rgba(128, 134, 145, 0.22)"
# Hues that stay apart for colour-blind readers (after Okabe and Ito), shifted to be seen on white and on near-black.
HUES = ("#3b82c4", "#e08a00", "#009e73", "#d5531e", "#b56bb0", "#35aacb", "#a89a00", "#858b95")
# The middle is nearly transparent: what is balanced takes the colour of the page, in both colour schemes.
_DIVERGING = (
    (0.0, "rgba(23, 92, 166, 1)"),
    (0.25, "rgba(59, 130, 196, 0.72)"),
    (0.5, "rgba(128, 134, 145, 0.10)"),
    (0.75, "rgba(230, 126, 34, 0.72)"),
    (1.0, "rgba(201, 69, 10, 1)"),
)
_RAMP = ("#3b5fc4", "#3b8fc4", "#1ba39a", "#63a83c", "#c29a00", "#e0761a", "#cf4a3a", "#b04a9a")
Numbers = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over training with three clocks: steps, seconds and items; None is a gap.

    Example:
        >>> Curve(name="loss", step=[1, 2], seconds=[0.1, 0.2], items=[64, 128], value=[2.0, None]).name
        'loss'
    """

    name: str
    step: Numbers
    seconds: Numbers
    items: Numbers
    value: Numbers


def loss_figure(
    raw: Curve, smooth: Curve, validation: Sequence[Curve], *, loss: str = "loss", items: str = "items"
) -> "Figure":
    """Training loss (faint), its running median and the validation losses; buttons switch the x axis.

    Args:
        raw: of each step.
        smooth: its running median.
        validation: of each group of held-out data.
        loss: the unit of all of them.
        items: what the items are.

    Example:
        >>> curve = Curve(name="loss", step=[1, 2], seconds=[0.1, 0.2], items=[64, 128], value=[2.0, 1.5])
        >>> len(loss_figure(curve, curve, [curve]).data)
        3
    """
    figure = _figure(height=440 + 19 * (len(validation) // 4))
    line = {"color": GREY, "width": 1}
    _line(figure, raw, name="training, each step", opacity=0.35, line=line, hoverinfo="skip")
    _line(figure, smooth, name="training, running median", line={"color": GREY, "width": 2})
    validation = sorted(validation, key=lambda curve: curve.name != "mean")
    for curve, colour in zip(validation, layer_colours(len(validation)), strict=True):
        style = {"color": colour, "width": 3.2 if curve.name == "mean" else 1.6}
        mode = "lines+markers" if len(curve.value) <= 40 else "lines"
        _line(figure, curve, name=f"validation, {curve.name}", mode=mode, line=style, marker={"size": 5})
    clocks = {"step": ("step", "step"), "seconds": ("seconds", "training time in seconds"), "items": (items, items)}
    curves = [raw, smooth, *validation]
    buttons = [
        {
            "label": _plain(label),
            "method": "update",
            "args": [{"x": [getattr(curve, clock) for curve in curves]}, {"xaxis.title.text": _plain(title)}],
        }
        for clock, (label, title) in clocks.items()
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True, "pad": {"b": 6}}
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)", "bordercolor": GRID}
    figure.update_layout(updatemenus=[menu | place], margin_t=48, hovermode="x")
    figure.update_xaxes(title_text="step", rangemode="nonnegative")
    figure.update_yaxes(title_text=_plain(loss), hoverformat=".4f")
    return figure


def load_figure(steps: Sequence[int], relative: Sequence[Numbers]) -> "Figure":
    """Heat map of each expert's share of the assignments relative to the uniform share: 1 is balanced.

    Shapes:
        steps: one per column; relative: E rows with one value per column, None is a gap.

    Example:
        >>> load_figure([1, 2], [[1.0, 0.5], [1.0, 1.5]]).data[0].zmid
        1
    """
    experts = len(relative)
    figure = _heat_map(_height(experts, at_least=210))
    figure.add_heatmap(
        x=list(steps),
        y=list(range(experts)),
        z=[list(row) for row in relative],
        zmin=0,
        zmid=1,
        zmax=2,
        colorscale=_DIVERGING,
        colorbar=_colorbar("share \u00d7 E", {0: "0 (dead)", 0.5: "0.5", 1: "1 (even)", 1.5: "1.5", 2: "2 or more"}),
        hovertemplate="step %{x}, expert %{y}<br>%{z:.2f} times the even share<extra></extra>",
    )
    figure.update_xaxes(title_text="step", showgrid=False)
    figure.update_yaxes(**_expert_axis(experts), title_text="expert", autorange="reversed", showgrid=False)
    return figure


def lines_figure(
    steps: Mapping[str, Sequence[int]],
    values: Mapping[str, Numbers],
    *,
    title: str,
    level: float | None = None,
    note: str = "",
    form: str = ".3f",
) -> "Figure":
    """One line per layer over the steps; `level` draws a dashed line of reference with the text `note`.

    Example:
        >>> len(lines_figure({"a": [1, 2]}, {"a": [1.2, 1.1]}, title="max / mean", level=1).data)
        2
    """
    figure = _figure(height=330)
    few = len(values) <= len(HUES)
    for (name, value), colour in zip(values.items(), layer_colours(len(values)), strict=True):
        line = {"color": colour, "width": 1.8 if few else 1.2}
        x, y = list(steps[name]), list(value)
        figure.add_scatter(x=x, y=y, name=_plain(name), mode="lines", line=line, showlegend=few)
    if not few:
        _depth_scale(figure, [_plain(name) for name in values])
    if level is not None:
        # A curve and not a shape, so that the axis always reaches it and the legend names it.
        ends = [min(map(min, steps.values())), max(map(max, steps.values()))]
        line = {"color": GREY, "width": 1.4, "dash": "dash"}
        figure.add_scatter(
            x=ends, y=[level, level], name=note, mode="lines", line=line, hoverinfo="skip", showlegend=True
        )
    figure.update_layout(hovermode="x" if few else "closest")
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=title, hoverformat=form, tickformat=".0%" if form.endswith("%") else None)
    return figure


def specialisation_figure(domains: Sequence[str], lift: Sequence[Numbers]) -> "Figure":
    """Heat map of the lift of each domain at each expert, coloured by its log2: 0 (lift 1) is no preference.

    Shapes:
        domains: G names; lift: G rows of E values, None where the expert got nothing.

    Example:
        >>> specialisation_figure(["code", "prose"], [[2.0, 0.0], [0.0, 2.0]]).data[0].z[0]
        [1.0, -3.0]
    """
    limit = 2 if len(domains) <= 8 else 3
    experts = len(lift[0])
    figure = _heat_map(_height(len(domains), at_least=210, each=30))
    # A lift of 0 has no finite logarithm; it takes the end of the scale, and the label tells the value itself.
    log_lift = [[_gap(value, lambda known: round(max(-limit - 1.0, _log2(known)), 2)) for value in row] for row in lift]
    figure.add_heatmap(
        x=list(range(experts)),
        y=list(range(len(domains))),
        z=log_lift,
        customdata=[[_gap(value, lambda known: round(known, 2)) for value in row] for row in lift],
        zmin=-limit,
        zmid=0,
        zmax=limit,
        xgap=2,
        ygap=2,
        colorscale=_DIVERGING,
        colorbar=_colorbar("lift", {p: f"{2.0**p:g}\u00d7" for p in range(-limit, limit + 1)}),
        hovertemplate="expert %{x}<br>lift %{customdata:.2f}<extra></extra>",
    )
    figure.update_xaxes(**_expert_axis(experts), title_text="expert", showgrid=False)
    figure.update_yaxes(**_names(domains), autorange="reversed", showgrid=False)
    return figure


def map_figure(rows: Sequence[str], columns: Sequence[str], values: Sequence[Numbers], *, axis: str) -> "Figure":
    """Heat map of any numbers, from pale (the least) to dark.

    Example:
        >>> map_figure(["task a"], ["expert 0", "expert 1"], [[0.25, 0.75]], axis="expert").data[0].z[0]
        (0.25, 0.75)
    """
    figure = _heat_map(_height(len(rows), at_least=210, each=30))
    places = {"x": list(range(len(columns))), "y": list(range(len(rows)))}
    shown = "%{z:.4g}<extra></extra>"
    figure.add_heatmap(
        **places, z=[list(row) for row in values], xgap=2, ygap=2, colorscale="Blues", hovertemplate=shown
    )
    figure.update_xaxes(**_names(columns), title_text=_plain(axis), showgrid=False)
    figure.update_yaxes(**_names(rows), autorange="reversed", showgrid=False)
    return figure


def curves_figure(places: Sequence[float], curves: Mapping[str, Numbers], *, axis: str) -> "Figure":
    """Curves over one axis of numbers.

    Example:
        >>> curves_figure([0.1, 1.0], {"by score": [0.7, 0.9]}, axis="capacity").data[0].name
        'by score'
    """
    figure = _figure(height=360)
    for (name, values), colour in zip(curves.items(), layer_colours(len(curves)), strict=True):
        mode = "lines+markers" if len(places) <= 40 else "lines"
        figure.add_scatter(x=list(places), y=list(values), name=_plain(name), mode=mode, line={"color": colour})
    figure.update_xaxes(title_text=_plain(axis))
    return figure


def _names(names: Sequence[str]) -> dict[str, Any]:
    """The settings of an axis with a name at each place."""
    short = [_plain(name if len(name) <= 24 else name[:23] + "…") for name in names]
    return {"tickvals": list(range(len(short))), "ticktext": short}


def layer_colours(count: int) -> list[str]:
    """Colours for `count` lines: the distinct hues while they last, then a ramp in order (of depth, for layers).

    Example:
        >>> layer_colours(2), len(set(layer_colours(24))) == 24
        (['#3b82c4', '#e08a00'], True)
    """
    if count <= len(HUES):
        return list(HUES[:count])
    return [_between(i / (count - 1)) for i in range(count)]


def figure_data(figure: "Figure") -> dict[str, Any]:
    """A figure as plain data for `Plotly.newPlot(div, data, layout)`, valid JSON also where values are not finite.

    Example:
        >>> figure_data(load_figure([1], [[math.nan]]))["data"][0]["z"]
        [[None]]
    """
    data: dict[str, Any] = json.loads(figure.to_json(engine="json"))
    return data


def library() -> str:
    """The source of plotly.js, as plotly's `include_plotlyjs=True` puts it into a page.

    Raises:
        UserError: plotly is not installed.

    Example:
        >>> len(library()) > 1_000_000
        True
    """
    _plotly()
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _plotly() -> Any:
    try:
        import plotly.graph_objects
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected plotly for the report, got: {error}; run: pip install 'mixtura[train,plots]'"
        ) from None
    return plotly.graph_objects


def _figure(*, height: int) -> "Figure":
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": "", "automargin": True}
    clear = "rgba(0,0,0,0)"
    return _plotly().Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 56, "r": 12, "t": 16, "b": 80},
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"color": GREY, "size": 13, "family": "system-ui, -apple-system, 'Segoe UI', sans-serif"},
            "hoverlabel": {"bgcolor": "#23272f", "bordercolor": "#23272f", "font": {"color": "#f4f5f7"}},
            "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "bgcolor": clear},
            "modebar": {"bgcolor": clear, "color": GREY, "activecolor": HUES[0]},
            "xaxis": axis | {"title": {"standoff": 8, "font": {"size": 13}}},
            "yaxis": axis | {"title": {"standoff": 10, "font": {"size": 13}}},
        }
    )


def _heat_map(height: int) -> "Figure":
    """An empty figure with room for the colour bar's title above and none for a legend below."""
    return _figure(height=height).update_layout(margin_t=30, margin_b=44)


def _depth_scale(figure: "Figure", names: Sequence[str]) -> None:
    """A colour bar from the first to the last layer, where a legend of all of them would be taller than the plot."""
    last = len(names) - 1
    bar = _colorbar("layer", {0: names[0], last // 2: names[last // 2], last: names[last]})
    marker = {"color": [0], "cmin": 0, "cmax": last, "colorscale": _RAMP, "colorbar": bar, "showscale": True}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def _line(figure: "Figure", curve: Curve, *, name: str, mode: str = "lines", **style: Any) -> None:
    figure.add_scatter(x=list(curve.step), y=list(curve.value), name=_plain(name), mode=mode, **style)


def _colorbar(title: str, ticks: Mapping[float, str]) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12}},
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "ypad": 0,
        "thickness": 12,
        "outlinewidth": 0,
        "xpad": 6,
    }


def _expert_axis(experts: int) -> dict[str, Any]:
    return {"tickmode": "linear", "tick0": 0, "dtick": 1 if experts <= 20 else 2 if experts <= 32 else 4}


def _height(rows: int, *, at_least: int, each: int = 15) -> int:
    return min(760, max(at_least, 70 + each * rows))


def _plain(name: str) -> str:
    return html.escape(name, quote=False)


def _gap(value: float | None, form: Any) -> float | None:
    return form(value) if value is not None and math.isfinite(value) else None


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


def _between(part: float) -> str:
    """The colour at a place between 0 and 1 of the ramp."""
    place = part * (len(_RAMP) - 1)
    left = min(int(place), len(_RAMP) - 2)
    mixed = (
        round(
            int(_RAMP[left][i : i + 2], 16) * (left + 1 - place) + int(_RAMP[left + 1][i : i + 2], 16) * (place - left)
        )
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
