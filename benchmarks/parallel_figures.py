"""The tables and pictures of docs/parallel.md: `python -m benchmarks.parallel_figures` draws the pictures.

One picture for each layout, of boxes: what each of four processes holds, and what travels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.common import load, measured_on, table

IMAGES = Path(__file__).parent.parent / "docs" / "images"
GATE, COLOURS = "#d9d9d9", ("#f4b183", "#9dc3e6", "#a9d18e", "#ffd966")
WIDTH, BOX = 150, 24

# Of each process, rows of boxes: (text, colour, share of the width); then what the arrows below say.
Boxes = Sequence[tuple[str, str, float]]
ALL = [(f"E{e}", COLOURS[e], 0.25) for e in range(4)]


def _pair(first: int) -> Boxes:
    return [(f"E{e}", COLOURS[e], 0.5) for e in (first, first + 1)]


def _cut(names: Sequence[int], part: str, share: float) -> Boxes:
    return [(f"E{e}{part}", COLOURS[e], share) for e in names]


WHOLE_GATE, QUARTER = [("gate, dense parts", GATE, 1.0)], [("1/4", GATE, 0.25)]
LAYOUTS: Mapping[str, tuple[Sequence[Sequence[Boxes]], str]] = {
    "dp4": ([[WHOLE_GATE, ALL]] * 4, "each gradient once around"),
    "fsdp4": ([[QUARTER, _cut(range(4), "/4", 0.25)]] * 4, "parameters gathered for use, gradients reduced"),
    "ep4": ([[WHOLE_GATE, [(f"E{r}", COLOURS[r], 1.0)]] for r in range(4)], "rows to their expert and back"),
    "dp2_ep2": (
        [[WHOLE_GATE, _pair(2 * (r % 2))] for r in range(4)],
        "rows between 0 and 1, and 2 and 3; gradients between the pairs",
    ),
    "fsdp2_ep2": (
        [[QUARTER, _cut((2 * (r % 2), 2 * (r % 2) + 1), "/2", 0.5)] for r in range(4)],
        "rows between 0 and 1, and 2 and 3; halves of experts gathered between the pairs",
    ),
    "ep2_tp2": (
        [[WHOLE_GATE, _cut((2 * (r // 2), 2 * (r // 2) + 1), "ab"[r % 2], 0.5)] for r in range(4)],
        "rows between the pairs; sums of rows between 0 and 1, and 2 and 3; a, b: halves of the hidden width",
    ),
}


def picture(name: str) -> str:
    """One layout as SVG."""
    ranks, travels = LAYOUTS[name]
    height = 36 + max(map(len, ranks)) * (BOX + 4) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{4 * (WIDTH + 12) + 12}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for rank, rows in enumerate(ranks):
        left = 12 + rank * (WIDTH + 12)
        lines += [
            f'<rect x="{left}" y="8" width="{WIDTH}" height="{height - 38}" rx="6" fill="none" stroke="#7f7f7f"/>',
            f'<text x="{left + 8}" y="25">rank {rank}</text>',
        ]
        for place, boxes in enumerate(rows):
            x, y = left + 6.0, 32 + place * (BOX + 4)
            for text, colour, share in boxes:
                width = share * (WIDTH - 12)
                lines += [
                    f'<rect x="{x:g}" y="{y}" width="{width - 2:g}" height="{BOX}" fill="{colour}" stroke="#404040"/>',
                    f'<text x="{x + width / 2 - 1:g}" y="{y + 16}" text-anchor="middle">{escape(text)}</text>',
                ]
                x += width
    lines += [f'<text x="12" y="{height - 10}" fill="#404040">travels: {escape(travels)}</text>', "</svg>"]
    return "\n".join(lines) + "\n"


def nodes() -> str:
    """The way of a row to another node, as SVG."""
    places = [(20, 50), (130, 50), (290, 50), (400, 50)]
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="130" font-family="sans-serif" font-size="12">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        '<path d="M0,0 L6,3 L0,6 z" fill="#404040"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, left in enumerate((10, 280)):
        lines += [
            f'<rect x="{left}" y="10" width="210" height="90" rx="6" fill="none" stroke="#7f7f7f"/>',
            f'<text x="{left + 8}" y="28">node {number}</text>',
        ]
    for rank, (x, y) in enumerate(places):
        lines += [
            f'<rect x="{x}" y="{y}" width="80" height="{BOX}" fill="{COLOURS[rank]}" stroke="#404040"/>',
            f'<text x="{x + 40}" y="{y + 16}" text-anchor="middle">rank {rank}</text>',
        ]
    for x1, x2, bend, text, y in ((60, 165, 105, "1. inside the node", 120), (175, 435, 118, "2. between nodes", 120)):
        lines += [
            f'<path d="M{x1},75 Q{(x1 + x2) / 2:g},{bend} {x2},77" fill="none" stroke="#404040" '
            'marker-end="url(#tip)"/>',
            f'<text x="{(x1 + x2) / 2:g}" y="{y - 4}" text-anchor="middle" fill="#404040">{text}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _range(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.1f} ({spread['quartile 1']:.1f} to {spread['quartile 3']:.1f})"


def _on(section: Mapping[str, object]) -> str:
    return (
        f"One thread each on {section['cores']} cores, medians of {section['repeats']}. {measured_on(load('scaling'))}"
    )


def layouts() -> str:
    """The cost of each layout of four processes."""
    section = load("scaling")["layouts"]
    rows = [
        [name, _range(row["step ms"]), f"{row['MB sent by each process']:.1f}", f"{row['parameters held']:,}"]
        for name, row in section["found"].items()
    ]
    header = ["four processes", "ms a step (quartiles)", "MB sent by each, headers included", "parameters on each"]
    return f"{table(header, rows)}\n{_on(section)}\n"


def scaling() -> str:
    """Strong and weak scaling."""
    section = load("scaling")["scaling"]
    rows = [
        [f"{world}, {kind}", _range(row["step ms"]), _range(row["exchange ms"])]
        for kind in ("strong", "weak")
        for world, found in section["found"].items()
        for row in (found[kind],)
    ]
    header = ["processes", "ms a step (quartiles)", "of them waiting for rows"]
    return f"{table(header, rows)}\n{_on(section)}\n"


def overlap() -> str:
    """Steps in chunks over steps in a piece."""
    section = load("scaling")["overlap"]
    rows = [
        [f"{delay} ms, {count} rows", _range(row["step ms"]), *(f"{r:.2f}" for r in row["ratio by chunks"].values())]
        for delay, found in section["found"].items()
        for count, row in found.items()
    ]
    header = ["delay of a packet, rows on each of two processes", "ms in a piece", "2 chunks", "4 chunks"]
    return f"{table(header, rows)}\n{_on(section)}\n"


def compression() -> str:
    """What compressed gradients cost and save."""
    r = load("compression")
    rows = [
        [name, f"{row['loss']['mean']:.4f} ± {row['loss']['deviation']:.4f}", f"{row['MB a step']:.2f}"]
        for name, row in r["hooks"].items()
    ]
    header = ["hook", f"held-out loss after {r['steps']} steps", "MB sent by each process a step"]
    return f"{table(header, rows)}\nMean and deviation over {r['seeds']} seeds. {measured_on(r)}\n"


PARALLEL: dict[str, Callable[[], str]] = {
    "layouts": layouts,
    "scaling": scaling,
    "overlap": overlap,
    "compression": compression,
}


if __name__ == "__main__":
    for layout in LAYOUTS:
        (IMAGES / f"parallel_{layout}.svg").write_text(picture(layout), encoding="utf-8")
    (IMAGES / "parallel_nodes.svg").write_text(nodes(), encoding="utf-8")
