"""Pictures of mixtures: one call each, on given axes or new ones. The only file that imports matplotlib."""

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


def plot_gate(model: Any, X: Any, y: Any = None, *, axes: "Axes | None" = None, resolution: int = 200) -> "Axes":
    """Draw the regions of the gate: probabilities over one column of X, or colours over two.

    Colours of two columns are the experts' mixed by the gate; points are the rows, of classes in shades of grey.

    Args:
        model: a fitted mixture of one or two features.
        X: (n_samples, 1 or 2) rows that set the range and are drawn.
        y: labels of the rows, for their shade.
        axes: matplotlib axes; None makes new ones.
        resolution: grid points in each direction.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> model = MoERegressor(2, random_state=0).fit(X, np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0]))
        >>> len(plot_gate(model, X).lines)
        2
    """
    points = np.asarray(X, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] not in (1, 2):
        raise UserError(f"expected one or two columns to draw, got X of shape {points.shape}; fit on two columns")
    axes = new_axes(axes)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * (high - low)
    lines = [np.linspace(a, b, resolution) for a, b in zip(low - margin, high + margin, strict=True)]
    if points.shape[1] == 1:
        share = model.gate_proba(lines[0][:, None])
        for k in range(share.shape[1]):
            axes.plot(lines[0], share[:, k], color=hue(k), label=f"expert {k}")
        axes.set(xlabel="x", ylabel="gate probability", ylim=(-0.02, 1.02))
        axes.legend()
        return axes
    grid = np.stack(np.meshgrid(*lines), axis=-1)
    share = model.gate_proba(grid.reshape(-1, 2)).reshape(resolution, resolution, -1)
    axes.imshow(
        share @ rgb(share.shape[2]),
        extent=(lines[0][0], lines[0][-1], lines[1][0], lines[1][-1]),
        origin="lower",
        aspect="auto",
        alpha=0.6,
    )
    shade = "#222222" if y is None else np.unique(np.asarray(y), return_inverse=True)[1]
    axes.scatter(points[:, 0], points[:, 1], c=shade, cmap="gray", s=8, edgecolors="#222222", linewidths=0.4)
    axes.set(xlabel="x0", ylabel="x1", title="gate regions")
    return axes


def rgb(n_experts: int) -> np.ndarray:
    """Give the experts' colours as numbers, shape (n_experts, 3).

    Example:
        >>> rgb(2).shape
        (2, 3)
    """
    return np.array([[int(hue(k)[i : i + 2], 16) / 255 for i in (1, 3, 5)] for k in range(n_experts)])


def plot_experts(model: Any, X: Any, y: Any, *, axes: "Axes | None" = None, resolution: int = 400) -> "Axes":
    """Draw each expert's curve, the mixture's mean with a 90 % band, and the rows in their experts' colours.

    A row's colour is the experts' mixed by its responsibilities; an expert's curve is faint where the gate asks others.

    Args:
        model: a fitted MoERegressor of one feature and one output.
        X: (n_samples, 1).
        y: (n_samples,).
        axes: matplotlib axes; None makes new ones.
        resolution: points of each curve.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> len(plot_experts(MoERegressor(2, random_state=0).fit(X, y), X, y).lines)
        1
    """
    points, targets = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 1 or targets.ndim != 1:
        raise UserError(f"expected one column and one output to draw, got {points.shape} and {targets.shape}; reduce X")
    axes = new_axes(axes)
    line = np.linspace(points.min(), points.max(), resolution)[:, None]
    curves, share = model.expert_predict(line), model.gate_proba(line)
    band = model.predict_quantiles(line, (0.05, 0.95))
    axes.fill_between(line[:, 0], band[:, 0], band[:, 1], color="#858b95", alpha=0.2, linewidth=0)
    colours = np.clip(model.responsibilities(points, targets) @ rgb(share.shape[1]), 0.0, 1.0)
    axes.scatter(points[:, 0], targets, c=colours, s=10)
    for k in range(share.shape[1]):
        opacity = 0.12 + 0.88 * share[:-1, k]
        _faded(axes, line[:, 0], curves[:, k], hue(k), opacity)
    axes.plot(line[:, 0], model.predict(line), color="#222222", linewidth=1.2, label="mixture")
    axes.set(xlabel="x", ylabel="y")
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
    """Draw AIC, BIC and ICL over the number of experts, and a line at the chosen one.

    Example:
        >>> len(plot_selection(Selection(candidates=(), criterion="bic", n_experts=2, model=None)).lines)
        4
    """
    axes = new_axes(axes)
    counts = [candidate.n_experts for candidate in selection.candidates]
    for k, name in enumerate(("aic", "bic", "icl")):
        values = [getattr(candidate, name) for candidate in selection.candidates]
        axes.plot(counts, values, marker="o", color=hue(k), label=name.upper())
    axes.axvline(selection.n_experts, color="#858b95", linestyle=":")
    axes.set(xlabel="experts", ylabel="criterion (nats, lower is better)")
    axes.legend()
    return axes
