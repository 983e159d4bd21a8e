"""Pictures of mixtures: one call each, on given axes or new ones. The only file that imports matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtura.classical.selection import Selection
from mixtura.errors import UserError

if TYPE_CHECKING:  # optional package: only named in annotations here, imported where it is used
    from matplotlib.axes import Axes

# Hues that stay apart for colour-blind readers (after Okabe and Ito).
HUES = ("#3b82c4", "#e08a00", "#009e73", "#d5531e", "#b56bb0", "#35aacb", "#a89a00", "#858b95")


def new_axes(axes: "Axes | None" = None) -> "Axes":
    """Give the axes, or new ones of a new figure; raises UserError where matplotlib is missing.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("svg")
        >>> new_axes().has_data()
        False
    """
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("expected matplotlib for plots, got none; pip install 'mixtura[plots]'") from error
    created: Axes = Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
    return created


def hue(k: int) -> str:
    """Give the colour of expert k; they repeat after eight.

    Example:
        >>> hue(0) == hue(8)
        True
    """
    return HUES[k % len(HUES)]


def plot_gate(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    columns: Sequence[int] | None = None,
    axes: "Axes | None" = None,
    resolution: int = 200,
) -> "Axes":
    """Draw the regions of the gate: probabilities over one column of X, or colours over two.

    Colours of two columns are the experts' mixed by the gate; points are the rows, of classes in shades of grey.

    Args:
        model: a fitted mixture.
        X: (n_samples, n_features), array or DataFrame: rows that set the range and are drawn.
        y: labels of the rows, for their shade.
        columns: the numbers of the one or two columns to draw over; the others stay at their medians. None for all.
        axes: matplotlib axes; None makes new ones.
        resolution: grid points in each direction.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> model = MoERegressor(2, random_state=0).fit(X, np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0]))
        >>> len(plot_gate(model, X).lines)
        2
    """
    points, names = _points(X)
    drawn = list(range(points.shape[1])) if columns is None else list(columns)
    if len(drawn) not in (1, 2):
        raise UserError(f"expected one or two columns to draw, got X of shape {points.shape}; pass columns=[0, 1]")
    axes = new_axes(axes)
    lines = [_line(points[:, column], resolution, margin=0.05) for column in drawn]
    if len(drawn) == 1:
        share = model.gate_proba(_section(X, points, drawn, lines[0][:, None]))
        for k in range(share.shape[1]):
            axes.plot(lines[0], share[:, k], color=hue(k), label=f"expert {k}")
        axes.set(xlabel=names[drawn[0]], ylabel="gate probability", ylim=(-0.02, 1.02))
        axes.legend()
        return axes
    grid = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2)
    share = model.gate_proba(_section(X, points, drawn, grid)).reshape(resolution, resolution, -1)
    axes.imshow(
        share @ rgb(share.shape[2]),
        extent=(lines[0][0], lines[0][-1], lines[1][0], lines[1][-1]),
        origin="lower",
        aspect="auto",
        alpha=0.6,
    )
    shade = np.zeros(len(points)) if y is None else np.unique(np.asarray(y), return_inverse=True)[1]
    across, up = points[:, drawn].T
    axes.scatter(across, up, c=shade, cmap="gray", s=8, edgecolors="#222222", linewidths=0.4)
    for k in range(share.shape[2]):
        axes.scatter([], [], color=hue(k), alpha=0.6, marker="s", label=f"expert {k}")
    axes.set(xlabel=names[drawn[0]], ylabel=names[drawn[1]])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def _points(X: Any) -> tuple[np.ndarray, list[str]]:
    """Give the rows as numbers (n_samples, n_features) and the names of their columns."""
    points = np.asarray(X, dtype=np.float64)
    if points.ndim != 2:
        raise UserError(f"expected X of two dimensions, got shape {points.shape}; pass (n_samples, n_features)")
    names = getattr(X, "columns", [f"x{column}" for column in range(points.shape[1])])
    return points, [str(name) for name in names]


def _line(values: np.ndarray, resolution: int, *, margin: float = 0.0) -> np.ndarray:
    low, high = values.min(), values.max()
    extra = margin * (high - low)
    return np.linspace(low - extra, high + extra, resolution)


def _section(X: Any, points: np.ndarray, columns: list[int], values: np.ndarray) -> Any:
    """Give rows with `values` in some columns and medians in the others, with column names if X has them."""
    section = np.tile(np.median(points, axis=0), (len(values), 1))
    section[:, columns] = values
    return type(X)(section, columns=X.columns) if hasattr(X, "columns") else section


def rgb(n_experts: int) -> np.ndarray:
    """Give the experts' colours as numbers, shape (n_experts, 3).

    Example:
        >>> rgb(2).shape
        (2, 3)
    """
    return np.array([[int(hue(k)[i : i + 2], 16) / 255 for i in (1, 3, 5)] for k in range(n_experts)])


def plot_experts(
    model: Any, X: Any, y: Any, *, column: int | None = None, axes: "Axes | None" = None, resolution: int = 400
) -> "Axes":
    """Draw each expert's curve, the mixture's mean with a 90 % band, and the rows in their experts' colours.

    A row's colour is the experts' mixed by its responsibilities; an expert's curve is faint where the gate asks others.

    Args:
        model: a fitted MoERegressor of one output.
        X: (n_samples, n_features), array or DataFrame.
        y: (n_samples,).
        column: the number of the column to draw over; the others stay at their medians. None if there is one only.
        axes: matplotlib axes; None makes new ones.
        resolution: points of each curve.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> len(plot_experts(MoERegressor(2, random_state=0).fit(X, y), X, y).lines)
        1
    """
    (points, names), targets = _points(X), np.asarray(y, dtype=np.float64)
    if targets.ndim != 1 or (column is None and points.shape[1] != 1):
        raise UserError(
            f"expected one column and one output to draw, got X {points.shape} and y {targets.shape}; pass column=0"
        )
    axes, drawn = new_axes(axes), column or 0
    line = _line(points[:, drawn], resolution)
    section = _section(X, points, [drawn], line[:, None])
    curves, share = model.expert_predict(section), model.gate_proba(section)
    band = model.predict_quantiles(section, (0.05, 0.95))
    axes.fill_between(line, band[:, 0], band[:, 1], color="#858b95", alpha=0.2, linewidth=0, label="90 %")
    colours = np.clip(model.responsibilities(X, targets) @ rgb(share.shape[1]), 0.0, 1.0)
    axes.scatter(points[:, drawn], targets, c=colours, s=10)
    for k in range(share.shape[1]):
        _faded(axes, line, curves[:, k], hue(k), 0.12 + 0.88 * share[:-1, k])
        axes.scatter([], [], color=hue(k), s=10, label=f"expert {k}")
    axes.plot(line, model.predict(section), color="#222222", linewidth=1.2, label="mixture")
    axes.set(xlabel=names[drawn], ylabel="y")
    axes.legend()
    return axes


def _faded(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str, opacity: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    points = np.column_stack([x, y])
    segments = np.stack([points[:-1], points[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=colour, alpha=opacity, linewidths=2))


def plot_log_likelihood(model: Any, *, axes: "Axes | None" = None) -> "Axes":
    """Draw the objective of every iteration of the best start; dots mark re-seeded experts.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> model = MoERegressor(2, random_state=0).fit(X, np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0]))
        >>> len(plot_log_likelihood(model).lines[0].get_xdata()) == model.n_iter_
        True
    """
    axes = new_axes(axes)
    steps = np.arange(1, len(model.history_) + 1)
    axes.plot(steps, [step.objective for step in model.history_], color=hue(0))
    marked = [i for i, step in enumerate(model.history_, 1) if step.reseeded]
    axes.scatter(marked, [model.history_[i - 1].objective for i in marked], color=hue(3), zorder=3)
    axes.set(xlabel="EM iteration", ylabel="objective (nats)")
    return axes


def plot_selection(selection: Selection, *, axes: "Axes | None" = None) -> "Axes":
    """Draw AIC, BIC and ICL over the number of experts, what cross-validation said if asked, and the chosen number.

    Example:
        >>> len(plot_selection(Selection(candidates=(), criterion="bic", n_experts=2, model=None)).lines)
        4
    """
    axes = new_axes(axes)
    counts = [candidate.n_experts for candidate in selection.candidates]
    for k, name in enumerate(("aic", "bic", "icl")):
        values = [getattr(candidate, name) for candidate in selection.candidates]
        axes.plot(counts, values, marker="o", color=hue(k), label=name.upper())
    axes.axvline(selection.n_experts, color="#858b95", linestyle=":", label=f"chosen by {selection.criterion}")
    axes.set(xlabel="experts", ylabel="AIC, BIC, ICL (lower is better)", xticks=counts)
    held_out = [candidate.cv for candidate in selection.candidates]
    if np.isfinite(held_out).any():
        right = axes.twinx()
        right.plot(counts, held_out, marker="s", color=hue(3))
        right.set_ylabel("held-out log-density, nats a row (higher is better)", color=hue(3))
    axes.legend()
    return axes
