"""The figures of docs/multitask.md, from the committed results; `benchmarks.readme` puts them there."""

from collections.abc import Callable

from benchmarks.common import load, measured_on, table


def synthetic() -> str:
    """Held-out squared error of two synthetic tasks, by their correlation."""
    r = load("multitask_synthetic")
    rows = [
        [f"{p}, {name}", f"{run['mean']:.4f}", f"{run['standard deviation']:.4f}", f"{run['median']:.4f}"]
        for p, runs in r["p"].items()
        for name, run in runs.items()
    ]
    heading = ["cosine, model", "mean", "standard deviation", "median"]
    about = f"{r['runs']} runs each, {r['steps']:,} steps of {r['batch']} new rows."
    return f"{table(heading, rows)}\n{about} {measured_on(r)}\n"


def census() -> str:
    """Income AUC on Census-Income, published beside ours."""
    r = load("multitask_census")
    rows = []
    for name, row in r["models"].items():
        best, mean = (f"{value:.4f}" for value in r["published"][name]) if name in r["published"] else ("", "")
        college = [value for value in row["college"] if value is not None]
        spread = "" if row["standard deviation"] is None else f" ± {row['standard deviation']:.4f}"
        rows.append(
            [
                name,
                mean,
                f"{row['mean']:.4f}{spread}",
                best,
                f"{row['best']:.4f}",
                f"{sum(college) / len(college):.4f}" if college else "",
                str(len(row["income"])),
                f"{row['parameters']:,}",
            ]
        )
    heading = [
        "income AUC",
        "published mean",
        "ours, mean",
        "published best",
        "ours, best",
        "college AUC",
        "seeds",
        "parameters",
    ]
    about = f"Correlation of the two labels: {r['correlation']:.3f}."
    return f"{table(heading, rows)}\n{about} {measured_on(r)}\n"


def movielens() -> str:
    """AUC of both questions, for known and new people and films."""
    r = load("multitask_movielens")
    places = list(r["models"]["mixture"])
    rows = [
        [f"{task}, {name}", *(f"{where[place][task]:.3f}" for place in places)]
        for task in ("watch", "like")
        for name, where in r["models"].items()
    ]
    gates = [
        [f"{task}, {expert}", *(f"{r['models']['mixture'][place]['gates'][task][e]:.2f}" for place in places)]
        for task in ("watch", "like")
        for e, expert in enumerate(r["experts"])
    ]
    parts = [table(["AUC", *places], rows), table(["mean weight in the gate", *places], gates)]
    return "\n".join([*parts, f"Seeds: {r['seeds']}. {measured_on(r)}\n"])


MULTITASK: dict[str, Callable[[], str]] = {"synthetic": synthetic, "census": census, "movielens": movielens}
