"""The figures of docs/classical.md and docs/hme.md, from the committed results; `benchmarks.readme` puts them there."""

from collections.abc import Callable

from benchmarks.common import load, measured_on, table


def flexmix() -> str:
    """Log-likelihoods of R's flexmix beside ours."""
    r = load("classical_flexmix")
    names = {"patent": "patents: 3 Poisson experts, softmax gate", "NPreg": "NPreg: 2 Gaussian experts, constant gate"}
    rows = []
    for key, name in names.items():
        published, ours = r[key]["published"], r[key]["ours"]
        rows += [
            [f"{name}; {figure}", f"{published[figure]:.4f}", f"{ours[figure]:.4f}"]
            for figure in ("log-likelihood", "BIC")
        ]
        rows.append([f"{name}; starts that reach it", "", f"{r[key]['starts that reach it']} of {r['starts']}"])
    rows.append(["NPreg; rows in their class", "190", str(r["NPreg"]["rows in the right class"])])
    return table(["`python -m benchmarks.classical_flexmix`", "published", "ours"], rows) + f"\n{measured_on(r)}\n"


def tables() -> str:
    """Accuracies on iris, wine and breast cancer, published ones first."""
    r = load("classical_tables")
    rows = [
        [f"{name}{where}", *(f"{value:.3f}" for value in values)]
        for where, models in ((" (published)", r["published"]), ("", r["measured"]))
        for name, values in models.items()
    ]
    return table(["`python -m benchmarks.classical_tables`", *r["sets"]], rows) + f"\n{measured_on(r)}\n"


def three_experts() -> str:
    """Experts that know two classes of three, and the gate over them."""
    r = load("classical_three_experts")
    rows = [
        [name, f"{r['published'][name]:.3f}" if name in r["published"] else "", f"{value:.3f}"]
        for name, value in r["ours"].items()
    ]
    facts = f"The gate beats each of its experts in {r['seeds where the gate is best']} of {r['seeds']} seeds."
    heading = ["`python -m benchmarks.classical_three_experts`", "published", "ours"]
    return table(heading, rows) + f"\n{facts} {measured_on(r)}\n"


def vowels() -> str:
    """Epochs to the criterion of Jacobs and others."""
    r = load("classical_vowels")
    rows = [
        [
            name,
            str(r["published"].get(name, "")),
            f"{row['epochs']:.0f} ± {row['sd']:.0f}",
            f"{row.get('step size', '')}",
            f"{row['test accuracy']:.2f}",
        ]
        for name, row in r["ours"].items()
    ]
    published = r["published"]["network, 6 hidden"] / r["published"]["4 experts"]
    facts = f"Epochs of 6 hidden units over those of 4 experts: published {published:.2f}, ours {r['ratio']:.2f}."
    slow = {name: r["ours"][name]["tried"]["0.1"] for name in ("network, 6 hidden", "4 experts")}
    facts += " With a step size of 0.1 for both: {:.0f} and {:.0f} epochs.".format(*slow.values())
    heading = ["`python -m benchmarks.classical_vowels`", "published epochs", "ours", "step size", "test accuracy"]
    return table(heading, rows) + f"\n{facts} Means of {r['runs']} runs. {measured_on(r)}\n"


def speed() -> str:
    """One EM iteration against the products it cannot do without."""
    r = load("classical_speed")
    seconds = r["seconds"]
    rows = [
        ["weighted products `X' R X`, plain numpy", f"{seconds['plain numpy']:.2f}", ""],
        ["the same, block by block as here", f"{seconds['block by block']:.2f}", ""],
        [
            "one EM iteration",
            f"{seconds['iteration']:.2f}",
            f"{r['iteration / products, plain numpy']:.2f}, {r['iteration / products, block by block']:.2f}",
        ],
    ]
    size = f"{r['rows']:,} rows of {r['columns']} columns, {r['experts']} linear experts"
    memory = f"Memory at the peak: {r['peak memory / data']:.2f} times the data."
    return table([size, "seconds", "times the products"], rows) + f"\n{memory} {measured_on(r)}\n"


def tree_speed() -> str:
    """Seconds of a tree of sixteen leaves."""
    tree = load("classical_speed")["tree"]
    return (
        f"A tree of {tree['leaves']} leaves on {tree['rows']:,} rows: {tree['EM iteration']:.2f} s an EM iteration, "
        f"{tree['on-line epoch']:.1f} s an on-line epoch, of one processor. {measured_on(tree)}\n"
    )


def arm() -> str:
    """Relative errors on the arm of Jordan and Jacobs, published (epochs) beside ours."""
    r = load("classical_arm")
    rows = [
        [
            name,
            r["published"].get(name, ""),
            f"{row['relative error']:.3f} ({row['epochs']:.0f})",
            f"{row['worst']:.3f}" if "worst" in row else "",
        ]
        for name, row in r["models"].items()
    ]
    ratios = "; ".join(f"{name}: {value:.2f}" for name, value in r["ratios"].items())
    heading = ["relative error (epochs)", "published", f"ours, mean of {r['runs']} runs", "worst"]
    return table(heading, rows) + f"\n{ratios[0].upper()}{ratios[1:]}. {measured_on(r)}\n"


CLASSICAL: dict[str, Callable[[], str]] = {
    "flexmix": flexmix,
    "tables": tables,
    "three_experts": three_experts,
    "vowels": vowels,
    "speed": speed,
}
HME: dict[str, Callable[[], str]] = {"arm": arm, "tree_speed": tree_speed}
