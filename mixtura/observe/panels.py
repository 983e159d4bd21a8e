"""What a task shows of its own in the report: tables, heat maps, curves and pictures, read as untrusted data."""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mixtura.observe import plots

Kind = Literal["table", "heatmap", "lines", "picture"]
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One table, heat map, set of curves or picture.

    Attributes:
        kind: "table": `rows` of texts or numbers under `columns`. "heatmap": `values[row][column]`, which `rows` and
            `columns` name. "lines": `values[curve][point]` over the numbers `columns`; `rows` names the curves.
            "picture": `png`.
        title: short.
        note: what is seen, and what good looks like.
        columns: see `kind`.
        rows: see `kind`.
        values: numbers, None for a gap.
        axis: what the columns of curves or of a heat map are.
        png: base64 of a PNG file.

    Example:
        >>> Panel(kind="table", title="Scores", columns=["task", "AUC"], rows=[["income", 0.94]]).kind
        'table'
    """

    kind: Kind
    title: str
    note: str = ""
    columns: Sequence[Any] = ()
    rows: Sequence[Any] = ()
    values: Sequence[Sequence[float | None]] = field(default=())
    axis: str = ""
    png: str = ""


def picture(title: str, png: bytes, *, note: str = "") -> dict[str, Any]:
    """A picture as it stands in observations.json, from the bytes of a PNG file.

    Example:
        >>> picture("digits", _PNG)["kind"]
        'picture'
    """
    return {"kind": "picture", "title": title, "note": note, "png": base64.b64encode(png).decode()}


def read_panel(raw: Mapping[str, Any]) -> Panel:
    """A panel out of observations.json.

    Raises:
        ValueError: its parts do not fit together.

    Example:
        >>> read_panel({"kind": "table", "title": "t", "columns": ["a"], "rows": [[1]]}).rows
        [['1']]
    """
    kind, title, note = raw["kind"], str(raw["title"]), str(raw.get("note", ""))
    if kind not in get_args(Kind):
        raise ValueError(f"a panel of kind {kind!r}")
    if kind == "picture":
        return Panel(kind=kind, title=title, note=note, png=_checked(str(raw["png"])))
    columns = list(raw["columns"])
    if kind == "table":
        rows = [[_cell(cell) for cell in row] for row in raw["rows"]]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"rows of panel {title!r} have not {len(columns)} cells each")
        return Panel(kind=kind, title=title, note=note, columns=[str(name) for name in columns], rows=rows)
    names = [str(name) for name in raw["rows"]]
    values = [[_finite(value) for value in row] for row in raw["values"]]
    if len(values) != len(names) or any(len(row) != len(columns) for row in values):
        raise ValueError(f"values of panel {title!r} are not {len(names)} x {len(columns)}")
    axis = str(raw.get("axis", ""))
    columns = [float(place) for place in columns] if kind == "lines" else [str(name) for name in columns]
    return Panel(kind=kind, title=title, note=note, columns=columns, rows=names, values=values, axis=axis)


def panel_figure(panel: Panel) -> dict[str, Any] | None:
    """The plot of a panel as plain data; None where it is none.

    Example:
        >>> panel_figure(Panel(kind="table", title="t")) is None
        True
    """
    if panel.kind == "heatmap":
        return plots.figure_data(plots.map_figure(panel.rows, panel.columns, panel.values, axis=panel.axis))
    if panel.kind == "lines":
        curves = dict(zip(panel.rows, panel.values, strict=True))
        return plots.figure_data(plots.curves_figure(panel.columns, curves, axis=panel.axis))
    return None


def _checked(png: str) -> str:
    """Base64 of a PNG file and of nothing else."""
    try:
        data = base64.b64decode(png, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a picture is not base64 ({error})") from None
    if not data.startswith(_PNG) or len(data) > _MOST_BYTES:
        raise ValueError(f"a picture is no PNG file of at most {_MOST_BYTES:,} bytes")
    return base64.b64encode(data).decode()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not a number"
    return "" if value is None else str(value)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
