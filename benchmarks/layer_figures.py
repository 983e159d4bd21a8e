"""The figures of docs/speed.md and docs/routers.md, from the committed results; `benchmarks.readme` puts them there."""

from collections.abc import Callable

from benchmarks.common import load, measured_on, table


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
        parts.append(f"{name}\n\n{table(header, [*_layer_rows(dtype), last])}")
    peers = ", ".join(f"{name} {version}" for name, version in r["peers"].items())
    return "\n".join([*parts, f"{measured_on(r)}, {peers}, kernel {r['kernel']['kernel']} ({r['kernel']['native']})\n"])


def layer_summary() -> str:
    """The geometric means over the shapes of docs/speed.md."""
    means, rows = load("layer_cpu")["geometric means"], []
    for dtype, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        rows.append([name, *(f"{means[f'{dtype} to {what}']:.2f}x" for what in ("floor", "dense", "best peer"))])
    return table(
        ["", "its products alone, in one piece", "a dense MLP of equal work", "the best peer of each shape"], rows
    )


def decode() -> str:
    """Few tokens without gradients, beside reading the touched experts once and beside other people's layers."""
    r = load("decode")
    header = ["T, D, F, E, K, dtype", "ms", "to reading", "to the best peer", "best peer"]
    rows = []
    for row in r["rows"]:
        sizes = ", ".join(f"{row[name]:,}" for name in ("tokens", "dim", "hidden", "num_experts", "k"))
        ratios = [f"{row[name]:.2f}x" for name in ("to reading", "to best peer")]
        rows.append([f"{sizes}, {row['dtype']}", f"{row['mixtura ms']:.2f}", *ratios, row["best peer"]])
    means = ", ".join(f"{name} {value:.2f}x" for name, value in r["geometric means"].items())
    return f"{table(header, rows)}\nGeometric means: {means}. {measured_on(r)}\n"


def share() -> str:
    """What of a whole layer's time lies around the kernel's two calls."""
    r = load("share")
    rows = []
    for row in r["rows"]:
        sizes = ", ".join(f"{row[name]:,}" for name in ("tokens", "dim", "hidden", "num_experts", "k"))
        times = [f"{row[name]:.1f}" for name in ("layer ms", "kernel ms", "router ms")]
        rows.append([f"{sizes}, {row['dtype']}", *times, f"{row['around']:.0%}", f"{row['beyond']:.0%}"])
    header = [
        "T, D, F, E, K, dtype",
        "layer, ms",
        "its kernel",
        "the router's products",
        "around them",
        "beyond the products",
    ]
    return f"{table(header, rows)}\n{measured_on(r)}\n"


def trainer() -> str:
    """`mixtura train` beside transformers' Trainer."""
    r = load("trainer")
    rows = [
        [name, ", ".join(f"{ms:.0f}" for ms in run["ms per step"]), f"{run['tokens/s']:,}"]
        for name, run in r["runs"].items()
    ]
    figures = table(["", "ms per step, run by run", "tokens/s"], rows)
    times = r["times the best peer's tokens/s"]
    return f"{figures}\n{times:.2f} times the tokens/s of {r['best peer']}. {measured_on(r)}\n"


def routers_toy() -> str:
    """Every router on the toy task."""
    r = load("routers")
    rows = [
        [name, *(f"{row[key]:.{digits}f}" for key, digits in TOY_COLUMNS.items())] for name, row in r["toy"].items()
    ]
    times = "milliseconds of one thread's processor"
    about = f"{r['toy steps']} steps, mean of {r['seeds']} seeds, {times}. {measured_on(r)}\n"
    return f"{table(['router', *TOY_COLUMNS], rows)}\n{about}"


TOY_COLUMNS = {"loss": 4, "imbalance": 2, "experts per point": 2, "ms per step": 1}


def routers_model() -> str:
    """The default language model with each router."""
    r = load("routers")
    rows = [
        [name, f"{row['nats per byte']:.3f}", f"{row['imbalance']:.2f}", f"{row['processor seconds']}"]
        for name, row in r["language model"].items()
    ]
    figures = table(["router", "held-out loss, nats/byte", "imbalance", "processor seconds, start included"], rows)
    return f"{figures}\n{r['steps']} steps, one run and one thread each. {measured_on(r)}\n"


def three_experts() -> str:
    """The simple mixture of three experts: published and ours."""
    r = load("three_experts")
    rows = [
        [name, f"{row['published'] or '-'}", f"{row['ours']:.3f} ± {row['standard deviation']:.3f}"]
        for name, row in r["accuracy"].items()
    ]
    above = f"The mixture is above every one of its experts in {r['mixture above every expert in']} of {r['seeds']}"
    return f"{table(['accuracy', 'published', 'ours'], rows)}\n{above} seeds.\n"


def hub_layer() -> str:
    """transformers' MoE blocks with the plug-in beside its own implementations."""
    r = load("hub_layer")
    rows = []
    for row in r["rows"]:
        mine, best = "mixtura", row["best peer"]
        times = [f"{row[f'{name} ms']:.1f}" for name in (mine, best)]
        peaks = [f"{row[f'{name} peak MB']:.0f}" for name in (mine, best)]
        rows.append([f"{row['family']}, {row['dtype']}", *times, best, f"{row['speedup']:.2f}x", *peaks])
    header = ["", "ms", "best of transformers, ms", "which", "speedup", "peak MB", "its peak MB"]
    means = ", ".join(f"{name} {value:.2f}x" for name, value in r["geometric means"].items())
    return f"{table(header, rows)}\nGeometric means: {means}. {measured_on(r)}\n"


def hub_step() -> str:
    """Whole training steps of transformers' models with the plug-in beside its own implementations."""
    r = load("hub_step")
    rows = [
        [
            f"{row['model']}, {row['dtype']}",
            *(f"{row[f'{name} ms']:.0f}" for name in ("mixtura", "grouped_mm", "eager")),
            f"{row['speedup']:.2f}x",
        ]
        for row in r["rows"]
    ]
    means = ", ".join(f"{name} {value:.2f}x" for name, value in r["geometric means"].items())
    figures = table(["", "ms", "grouped_mm, ms", "eager, ms", "speedup over the best"], rows)
    return f"{figures}\nGeometric means: {means}. {measured_on(r)}\n"


HUB: dict[str, Callable[[], str]] = {"hub_layer": hub_layer, "hub_step": hub_step}
SPEED: dict[str, Callable[[], str]] = {"layer": layer, "decode": decode, "share": share, "trainer": trainer}
ROUTERS: dict[str, Callable[[], str]] = {
    "routers_toy": routers_toy,
    "routers_model": routers_model,
    "three_experts": three_experts,
}
