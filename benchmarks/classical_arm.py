"""Jordan and Jacobs (1994), table 1, on an arm of our own: `python -m benchmarks.classical_arm`.

Prints published figures beside ours: relative error (mean over the four accelerations of squared error over variance)
of a linear model, a network, CART and hierarchical mixtures by their algorithms 1 and 2 and on-line, each the mean over
runs with new data. An epoch counts as the last when it is the first within 5 % of the run's smallest error.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from benchmarks import arm
from benchmarks.common import load, save
from mixtura.classical import HMERegressor, LinearExpert, SoftmaxGate

TRAIN, TEST, EPOCHS, NETWORK_EPOCHS = 15_000, 5_000, 45, 150
BACKPROP = "backprop, full batch"
# Angles of shoulder and elbow: the base may turn without changing anything, and the wrist is light.
BENDS = SoftmaxGate(columns=[1, 2])
PUBLISHED = {
    "linear": ".31 (1)",
    BACKPROP: ".09 (5500)",
    "network": "",
    "CART": ".17",
    "HME, algorithm 1": ".10 (35)",
    "HME, algorithm 2": ".12 (39)",
    "HME on-line, least squares": ".12 (2)",
    "HME on-line, Newton": "",
    "HME on-line, then EM": "",
    "HME, quadratic experts": "",
    "HME, quadratic, gates see the bends": "",
    "HME, 8 cubic, gates see the bends": "",
}
Split = tuple[arm.Array, arm.Array, arm.Array, arm.Array]
Curve = list[float]


def data(seed: int) -> Split:
    """Standardised inputs, and targets in units of their spread: train and test."""
    X, y = arm.sample(TRAIN + TEST, np.random.default_rng(seed))
    X, y = StandardScaler().fit(X[:TRAIN]).transform(X), y / y[:TRAIN].std(axis=0)
    return X[:TRAIN], y[:TRAIN], X[TRAIN:], y[TRAIN:]


def relative_error(y: arm.Array, predicted: arm.Array) -> float:
    return float((((y - predicted) ** 2).mean(axis=0) / y.var(axis=0)).mean())


def once(model: object, split: Split) -> Curve:
    X, y, X_test, y_test = split
    return [relative_error(y_test, model.fit(X, y).predict(X_test))]


def em(split: Split, *, epochs: int, seed: int, online: int = 0, depth: int = 4, **settings: object) -> Curve:
    """Error on the test rows after each epoch: first some on-line ones, then EM iterations."""
    X, y, X_test, y_test = split
    model = HMERegressor(depth=depth, n_init=1, max_iter=1, tol=0.0, warm_start=True, random_state=seed, **settings)
    curve = []
    for epoch in range(epochs):
        model = model.partial_fit(X, y) if epoch < online else model.fit(X, y)
        curve.append(relative_error(y_test, model.predict(X_test)))
    return curve


def network(**settings: object) -> MLPRegressor:
    """Sixty hidden units, as published: as many parameters as the tree of sixteen linear experts."""
    quiet = {"tol": 0.0, "n_iter_no_change": 10**6}
    return MLPRegressor(hidden_layer_sizes=(60,), activation="tanh", **quiet, **settings)


def tuned(split: Split) -> dict[str, object]:
    """Choose the network's step size and batch by 3,000 held-out training rows."""
    X, y = split[0], split[1]
    held = (X[:-3000], y[:-3000], X[-3000:], y[-3000:])
    choices = [{"learning_rate_init": rate, "batch_size": batch} for rate in (3e-3, 1e-2) for batch in (128, 512)]
    errors = [once(network(max_iter=60, random_state=0, **choice), held)[0] for choice in choices]
    return choices[int(np.argmin(errors))]


def models(choice: dict[str, object]) -> dict[str, Callable[[Split, int], Curve]]:
    quadratic, cubic = ({"expert": LinearExpert(1.0, degree=degree)} for degree in (2, 3))
    return {
        "linear": lambda split, _: once(LinearRegression(), split),
        "CART": lambda split, seed: once(DecisionTreeRegressor(min_samples_leaf=5, random_state=seed), split),
        "network": lambda split, seed: once(network(max_iter=NETWORK_EPOCHS, random_state=seed, **choice), split),
        "HME, algorithm 1": lambda split, seed: em(split, epochs=EPOCHS, seed=seed),
        "HME, algorithm 2": lambda split, seed: em(split, epochs=EPOCHS, seed=seed, gate="least_squares"),
        "HME on-line, least squares": lambda split, seed: em(
            split, epochs=3, seed=seed, online=3, gate="least_squares"
        ),
        "HME on-line, Newton": lambda split, seed: em(split, epochs=3, seed=seed, online=3),
        "HME on-line, then EM": lambda split, seed: em(split, epochs=22, seed=seed, online=2),
        "HME, quadratic experts": lambda split, seed: em(split, epochs=22, seed=seed, online=2, **quadratic),
        "HME, quadratic, gates see the bends": lambda split, seed: em(
            split, epochs=EPOCHS, seed=seed, gate=BENDS, **quadratic
        ),
        "HME, 8 cubic, gates see the bends": lambda split, seed: em(
            split, epochs=12, seed=seed, depth=3, gate=BENDS, **cubic
        ),
    }


def backprop(split: Split, *, epochs: int) -> Curve:
    """The published kind of training: full-batch gradient descent with momentum."""
    sgd = {"solver": "sgd", "batch_size": TRAIN, "learning_rate_init": 0.2, "momentum": 0.9}
    return once(network(max_iter=epochs, random_state=0, **sgd), split)


def settled_epoch(curve: Curve) -> int:
    """The first epoch within 5 % of the smallest error, counted from 1."""
    return 1 + next(epoch for epoch, error in enumerate(curve) if error <= 1.05 * min(curve))


def summary(curves: list[Curve], seconds: list[float]) -> dict[str, float]:
    last = [curve[-1] for curve in curves]
    return {
        "relative error": round(statistics.mean(last), 4),
        "worst": round(max(last), 4),
        "epochs": round(statistics.mean(settled_epoch(curve) for curve in curves), 1),
        "seconds": round(statistics.mean(seconds), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--backprop-epochs", type=int, default=5500)
    parser.add_argument("--only", choices=PUBLISHED, help="measure one row again and keep the others")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    before = load("classical_arm") if options.only else {"models": {}, "network": tuned(data(0))}
    rows, choice = before["models"], before["network"]
    makers, curves, seconds = models(choice), {}, {}
    names = [name for name in makers if options.only in (None, name)]
    for seed in range(1, options.runs + 1) if names else ():
        split = data(seed)
        for name in names:
            start = time.perf_counter()
            curves.setdefault(name, []).append(makers[name](split, seed))
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    rows |= {name: summary(curves[name], seconds[name]) for name in names}
    if options.only in (None, BACKPROP):
        start = time.perf_counter()
        curve = backprop(data(1), epochs=options.backprop_epochs)
        taken = time.perf_counter() - start
        rows[BACKPROP] = summary([curve], [taken]) | {"epochs": options.backprop_epochs}
    rows["network"]["epochs"] = NETWORK_EPOCHS
    runs = options.runs if options.only is None else before["runs"]
    report({name: rows[name] for name in PUBLISHED if name in rows}, choice, runs=runs)


def report(rows: dict[str, dict[str, float]], choice: dict[str, object], *, runs: int) -> None:
    print(f"{'':30}{'published (epochs)':>20}{'ours':>10}{'worst':>10}{'epochs':>9}{'seconds':>9}")
    for name, published in PUBLISHED.items():
        if row := rows.get(name):
            worst = f"{row['worst']:.4f}" if "worst" in row else ""
            figures = f"{row['relative error']:>10.4f}{worst:>10}{row.get('epochs', ''):>9}{row['seconds']:>9}"
            print(f"{name:30}{published:>20}{figures}")
    best = rows["HME, algorithm 1"]["relative error"]
    targets = {
        "algorithm 1 / linear (target: at most 0.40)": round(best / rows["linear"]["relative error"], 3),
        "algorithm 1 / network (target: at most 1.2)": round(best / rows["network"]["relative error"], 2),
    }
    if BACKPROP in rows:
        full = rows[BACKPROP]["relative error"]
        targets["algorithm 1 / backprop as published"] = round(best / full, 2)
    for name, value in targets.items():
        print(f"{name}: {value}")
    save("classical_arm", {"runs": runs, "network": choice, "published": PUBLISHED, "models": rows, "ratios": targets})


if __name__ == "__main__":
    main()
