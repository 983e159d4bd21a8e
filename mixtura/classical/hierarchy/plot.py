"""Pictures of a fitted hierarchy: the histogram tree and the deviance tree of Jordan and Jacobs (1994)."""

from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from mixtura.classical.checks import check_choice
from mixtura.classical.hierarchy.describe import BINS, SoftNode, SoftTree
from mixtura.classical.plots import hue, new_axes
from mixtura.errors import UserError

if TYPE_CHECKING:  # optional package: only named in annotations here
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["histogram", "deviance"]
WIDTH, HEIGHT = 0.8, 0.5


def plot_tree(tree: SoftTree, *, kind: Kind = "histogram", axes: "Axes | None" = None) -> "Axes":
    """Draw a hierarchy and give the matplotlib Axes.

    Args:
        tree: as `to_tree(X, y)` of a fitted hierarchy gives it.
        kind: "histogram" draws in each node how surely rows come down to it (left 0, right 1; square-root heights);
            "deviance" writes the share of the rows, what is left if the tree is cut there, and what its subtree leaves.
        axes: matplotlib axes; None makes new ones, large enough for the tree.

    Example:
        >>> leaf = SoftNode(number=0, depth=0, children=(), expert=0, gate=None, text="y = 1")
        >>> plot_tree(SoftTree((leaf,)))
        Traceback (most recent call last):
            ...
        mixtura.errors.UserError: expected a tree with measures, got one without; call to_tree(X, y)
    """
    check_choice("kind", kind, ("histogram", "deviance"))
    if any(node.histogram is None for node in tree.nodes) or (kind == "deviance" and tree.nodes[0].deviance is None):
        raise UserError("expected a tree with measures, got one without; call to_tree(X, y)")
    place = positions(tree)
    ax = new_axes(axes)
    if axes is None:
        width, height = max(x for x, _ in place) + 1, 1 - min(y for _, y in place)
        cast("Figure", ax.figure).set_size_inches(max(4.0, 1.1 * width), 1.4 * height)
    for node in tree.nodes:
        x, y = place[node.number]
        for child in node.children:
            child_x, child_y = place[child]
            share = tree.nodes[child].share or 0.0
            ax.plot([x, child_x], [y, child_y + HEIGHT], color="0.6", linewidth=0.5 + 4 * share, zorder=1)
    for node in tree.nodes:
        _draw(ax, node, place[node.number], kind=kind)
    ax.set_xlim(-0.7, max(x for x, _ in place) + 0.7)
    ax.set_ylim(min(y for _, y in place) - 0.3, HEIGHT + 0.1)
    ax.set_axis_off()
    return ax


def positions(tree: SoftTree) -> list[tuple[float, float]]:
    """Give each node's place: leaves side by side, each gate above the middle of its children.

    Example:
        >>> leaf = SoftNode(number=0, depth=0, children=(), expert=0, gate=None, text="y = 1")
        >>> positions(SoftTree((leaf,)))
        [(0.0, 0.0)]
    """
    across = [0.0] * len(tree.nodes)
    for node in reversed(tree.nodes):
        if node.expert is not None:
            across[node.number] = float(node.expert)
        else:
            across[node.number] = float(np.mean([across[child] for child in node.children]))
    return [(x, 0.0 - node.depth) for x, node in zip(across, tree.nodes, strict=True)]


def _draw(ax: "Axes", node: SoftNode, place: tuple[float, float], *, kind: Kind) -> None:
    x, y = place
    left = x - WIDTH / 2
    name = f"leaf {node.expert}" if node.is_leaf else f"gate {node.number}"
    if kind == "deviance":
        lines = [name, f"{node.share or 0.0:.0%} of rows", f"deviance {node.deviance:.3g}"]
        lines += [] if node.is_leaf else [f"below {node.below:.3g}"]
        frame = {"facecolor": "white", "edgecolor": "0.5", "pad": 2}
        ax.text(x, y + HEIGHT / 2, "\n".join(lines), ha="center", va="center", fontsize=7, bbox=frame)
        return
    ax.bar([x], [HEIGHT], width=WIDTH, bottom=y, facecolor="white", edgecolor="0.5", zorder=2)
    assert node.histogram is not None
    heights = 0.92 * HEIGHT * np.sqrt(np.array(node.histogram))
    centres = left + WIDTH * (np.arange(BINS) + 0.5) / BINS
    colour = "#858b95" if node.expert is None else hue(node.expert)
    ax.bar(centres, heights, width=0.9 * WIDTH / BINS, bottom=y, color=colour, zorder=3)
    ax.text(x, y + 0.93 * HEIGHT, name, ha="center", va="top", fontsize=7, zorder=4)
