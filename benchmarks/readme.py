"""Fill the pages' figures from the committed results: `python -m benchmarks.readme`.

A block between `<!-- result: NAME -->` and `<!-- end -->` is made by the function of that name below; nothing in it is
typed by hand, and a test compares the pages with the results.
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "docs/routers.md", "docs/speed.md")]
BLOCK = re.compile(r"(<!-- result: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _machine(result: dict) -> str:
    m = result["machine"]
    return f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['date']}"


def train() -> str:
    """The default recipe's run: minutes, speed, memory and loss by domain."""
    r = load("train")
    losses = r["validation loss"]
    rows = [[name, f"{loss:.3f}", f"{loss / 0.693147:.3f}"] for name, loss in losses.items()]
    facts = (
        f"`make train`: {r['minutes to install']:.1f} min to install, {r['minutes']:.1f} min to run, "
        f"{r['tokens/s']:,} tokens/s, {r['peak memory MB']:,} MB at the peak, {r['steps']:,} steps, "
        f"{r['parameters']['total']:,} parameters, {r['parameters']['active']:,} active per token.\n"
    )
    return facts + "\n" + _table(["held-out text", "nats/byte", "bits/byte"], rows) + f"\n{_machine(r)}\n"


def quality() -> str:
    """The mixture against the dense model of equal active parameters, at equal wall time."""
    r = load("quality")
    rows = [
        [name, f"{run['steps']:,}", f"{run['seconds']:.0f}", f"{run['final']['mean']:.3f}"]
        for name, run in r["runs"].items()
    ]
    reached = r["reaches the dense model's final loss after this share of its time"]
    sentences = [
        f"The {name} reaches the dense model's final loss after {share:.0%} of its time."
        if share is not None
        else f"The {name} does not reach the dense model's final loss."
        for name, share in reached.items()
    ]
    table = _table(["model", "steps", "seconds", "validation loss, nats/byte"], rows)
    return f"{table}\n{' '.join(sentences)}\n{_machine(r)}\n"


def step() -> str:
    """The cost of a training step."""
    r = load("train_step")
    rows = [
        [name, f"{row['median']:.1f}", f"{row['tokens/s']:,}", f"{row['parameters']['total']:,}"]
        for name, row in r["ms per step"].items()
    ]
    table = _table(["recipe", "ms per step", "tokens/s", "parameters"], rows)
    return f"{table}\nRatio, median of {r['repeats']} interleaved pairs: {r['ratio']:.2f}. {_machine(r)}\n"


def _layer_rows(dtype: str) -> list[list[str]]:
    rows = []
    for row in load("layer_cpu")["rows"]:
        if row["dtype"] != dtype or "to floor" not in row:
            continue
        sizes = ", ".join(f"{row[name]:,}" for name in ("tokens", "dim", "hidden", "num_experts", "k"))
        name = sizes if row["load"] == "even" else f"{sizes}, {row['load']}"
        peer, times = row["best peer"], f"{row['to best peer']:.2f}x"
        rows.append(
            [name, f"{row['mixtura ms']:.1f}", f"{row['to floor']:.2f}x", f"{row['to dense']:.2f}x", times, peer]
        )
    return rows


def layer() -> str:
    """The layer on a CPU beside its products alone, a dense MLP, and other people's layers."""
    r = load("layer_cpu")
    header = ["T, D, F, E, K", "ms", "to the products", "to a dense MLP", "to the best peer", "best peer"]
    parts = []
    for dtype, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        means = [r["geometric means"][f"{dtype} to {what}"] for what in ("floor", "dense", "best peer")]
        last = ["geometric mean", "", *(f"{mean:.2f}x" for mean in means), ""]
        parts.append(f"{name}\n\n{_table(header, [*_layer_rows(dtype), last])}")
    peers = ", ".join(f"{name} {version}" for name, version in r["peers"].items())
    return "\n".join([*parts, f"{_machine(r)}, {peers}, kernel {r['kernel']['kernel']} ({r['kernel']['native']})\n"])


def layer_summary() -> str:
    """The geometric means over the shapes of docs/speed.md."""
    means, rows = load("layer_cpu")["geometric means"], []
    for dtype, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        rows.append([name, *(f"{means[f'{dtype} to {what}']:.2f}x" for what in ("floor", "dense", "best peer"))])
    return _table(
        ["", "its products alone, in one piece", "a dense MLP of equal work", "the best peer of each shape"], rows
    )


def decode() -> str:
    """Few tokens without gradients, beside reading the touched experts once."""
    rows = [
        [f"{row['tokens']}", row["dtype"], f"{row['mixtura ms']:.2f}", f"{row['to reading']:.2f}x"]
        for row in load("layer_cpu")["rows"]
        if row.get("decoding")
    ]
    return _table(["tokens", "dtype", "ms", "to reading the touched experts at the speed of a copy"], rows)


def trainer() -> str:
    """`mixtura train` beside transformers' Trainer."""
    r = load("trainer")
    rows = [
        [name, ", ".join(f"{ms:.0f}" for ms in run["ms per step"]), f"{run['tokens/s']:,}"]
        for name, run in r["runs"].items()
    ]
    table = _table(["", "ms per step, run by run", "tokens/s"], rows)
    times = r["times the best peer's tokens/s"]
    return f"{table}\n{times:.2f} times the tokens/s of {r['best peer']}. {_machine(r)}\n"


def routers_toy() -> str:
    """Every router on the toy task."""
    r = load("routers")
    rows = [
        [name, *(f"{row[key]:.{digits}f}" for key, digits in TOY_COLUMNS.items())] for name, row in r["toy"].items()
    ]
    about = f"{r['toy steps']} steps, mean of {r['seeds']} seeds. {_machine(r)}\n"
    return f"{_table(['router', *TOY_COLUMNS], rows)}\n{about}"


TOY_COLUMNS = {"loss": 4, "imbalance": 2, "experts per point": 2, "ms per step": 1}


def routers_model() -> str:
    """The default language model with each router."""
    r = load("routers")
    rows = [
        [name, f"{row['nats per byte']:.3f}", f"{row['imbalance']:.2f}", f"{row['processor seconds']}"]
        for name, row in r["language model"].items()
    ]
    table = _table(["router", "held-out loss, nats/byte", "imbalance", "processor seconds, start included"], rows)
    return f"{table}\n{r['steps']} steps, one run and one thread each. {_machine(r)}\n"


def three_experts() -> str:
    """The simple mixture of three experts: published and ours."""
    r = load("three_experts")
    rows = [
        [name, f"{row['published'] or '-'}", f"{row['ours']:.3f} ± {row['standard deviation']:.3f}"]
        for name, row in r["accuracy"].items()
    ]
    above = f"The mixture is above every one of its experts in {r['mixture above every expert in']} of {r['seeds']}"
    return f"{_table(['accuracy', 'published', 'ours'], rows)}\n{above} seeds.\n"


MAKERS: dict[str, Callable[[], str]] = {
    maker.__name__: maker
    for maker in (
        train,
        quality,
        step,
        layer,
        layer_summary,
        decode,
        trainer,
        routers_toy,
        routers_model,
        three_experts,
    )
}


def fill(text: str) -> str:
    """The page with every block made afresh."""
    return BLOCK.sub(lambda match: f"{match[1]}{MAKERS[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
