"""The table of neural-trees, side by side in one run: `python -m benchmarks.classical_trees`.

Five-fold stratified cross-validation, standardised columns, five seeds: mean accuracy on iris, wine and breast cancer.
neural-trees is skipped by name where it is missing; `pip install --no-deps --target FOLDER neural-trees` and PYTHONPATH
bring it in without touching an environment. Our settings are one for all three data sets, chosen on them from five.
"""

import argparse
import importlib
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from benchmarks.common import save
from mixtura.classical import HMEClassifier, LogisticExpert, SoftmaxGate

DATA = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
PUBLISHED = {"neural-trees HME": (0.904, 0.979, 0.977), "CART": (0.943, 0.917, 0.920)}
TARGET = (0.96, 0.98, 0.977)
SEEDS = 5


def ours(seed: int) -> BaseEstimator:
    return HMEClassifier(2, expert=LogisticExpert(0.3), gate=SoftmaxGate(1.0), n_init=1, tol=1e-4, random_state=seed)


def models() -> dict[str, Callable[[int], BaseEstimator]]:
    found: dict[str, Callable[[int], BaseEstimator]] = {
        "mixtura HMEClassifier": ours,
        "logistic regression": lambda _: LogisticRegression(max_iter=1000),
        "CART": lambda seed: DecisionTreeClassifier(random_state=seed),
    }
    try:
        rival = importlib.import_module("neural_trees").HierarchicalMixtureOfExperts
    except ImportError:
        print("neural-trees is not installed: skipped")
        return found
    return found | {"neural-trees HME": lambda seed: rival(depth=2, random_state=seed)}


def accuracy(make: Callable[[int], BaseEstimator], load: Callable[..., object]) -> list[float]:
    X, y = load(return_X_y=True)
    return [
        float(
            cross_val_score(
                make_pipeline(StandardScaler(), make(seed)),
                X,
                y,
                cv=StratifiedKFold(5, shuffle=True, random_state=seed),
            ).mean()
        )
        for seed in range(SEEDS)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, dict[str, object]] = {}
    print(f"{'':24}" + "".join(f"{name:>24}" for name in DATA) + f"{'seconds':>10}")
    for name, make in models().items():
        start = time.perf_counter()
        scores = {data: accuracy(make, load) for data, load in DATA.items()}
        seconds = round(time.perf_counter() - start, 1)
        means = {data: round(float(np.mean(values)), 4) for data, values in scores.items()}
        result[name] = {"accuracy": means, "seeds": scores, "seconds": seconds}
        published = PUBLISHED.get(name, ("",) * 3)
        cells = (
            f"{mean:.4f} ({known})" if known else f"{mean:.4f}"
            for mean, known in zip(means.values(), published, strict=True)
        )
        print(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells) + f"{seconds:>10}", flush=True)
    print(f"{'target':24}" + "".join(f"{value:>24}" for value in TARGET) + "   (in brackets: published)")
    save("classical_trees", {"target": TARGET, "published": PUBLISHED, "models": result})


if __name__ == "__main__":
    main()
