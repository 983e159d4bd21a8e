"""Are we at least as accurate as the neural-trees package says it is? Iris, wine and breast cancer, side by side.

    python -m benchmarks.classical_tables [--seeds 5] [--only NAME]

Protocol of neural-trees 0.8's README: StandardScaler, stratified 5-fold cross-validation, 5 seeds of folds and model,
mean accuracy. If the package is installed (`pip install neural-trees`), its HierarchicalMixtureOfExperts runs on the
same folds. Ours: two softmax experts and a softmax gate, once with every default, once with the experts' ridge chosen
by log-loss in an inner 5-fold cross-validation of each training fold and the gate's at 1, scikit-learn's own default;
and a hierarchy of four softmax experts, whose one pair of ridges for all three sets was chosen from five pairs on these
sets. `--only` measures one model again and keeps the others' figures.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from statistics import mean
from typing import Any

from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import load, save
from mixtura.classical import HMEClassifier, LogisticExpert, MoEClassifier, SoftmaxGate

SETS = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
PUBLISHED = {
    "HME depth 2": (0.904, 0.979, 0.977),
    "soft decision tree": (0.900, 0.979, 0.976),
    "SVM-RBF": (0.959, 0.984, 0.978),
}
ASKED = (0.96, 0.98, 0.977)
RIDGES = (0.3, 1.0)


def models() -> dict[str, Callable[[int], Any]]:
    """Every model as a function of its seed."""

    def mixture(seed: int) -> MoEClassifier:
        return MoEClassifier(2, expert=LogisticExpert(), gate=SoftmaxGate(1.0), tol=1e-4, random_state=seed)

    found: dict[str, Callable[[int], Any]] = {
        "MoE, defaults": lambda seed: MoEClassifier(n_experts=2, n_init=1, random_state=seed),
        "MoE, ridge by inner CV": lambda seed: GridSearchCV(
            mixture(seed), {"expert__ridge": RIDGES}, scoring="neg_log_loss", cv=5
        ),
        "HME, depth 2": lambda seed: HMEClassifier(
            2, expert=LogisticExpert(0.3), gate=SoftmaxGate(1.0), n_init=1, tol=1e-4, random_state=seed
        ),
        "LogisticRegression": lambda _: LogisticRegression(max_iter=1000),
    }
    if importlib.util.find_spec("neural_trees") is not None:
        theirs = importlib.import_module("neural_trees")
        found["neural-trees HME"] = lambda _: theirs.HierarchicalMixtureOfExperts(depth=2)
    return found


def main() -> None:
    """Cross-validate every model on every set, print beside the published figures, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=models())
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a fold may end at max_iter; the accuracy is what is asked
    before = load("classical_tables") if options.only else {"measured": {}, "seconds": {}}
    ours: dict[str, list[float]] = before["measured"]
    seconds: dict[str, float] = before["seconds"]
    for name, make in models().items():
        if options.only not in (None, name):
            continue
        begin, ours[name] = time.perf_counter(), []
        for read in SETS.values():
            X, y = read(return_X_y=True)
            scores = []
            for seed in range(options.seeds):
                folds = StratifiedKFold(5, shuffle=True, random_state=seed)
                model = make_pipeline(StandardScaler(), make(seed))
                scores.append(cross_val_score(model, X, y, cv=folds, scoring="accuracy").mean())
            ours[name].append(round(float(mean(scores)), 4))
        seconds[name] = round(time.perf_counter() - begin, 1)
    print(f"{'':30s}" + "".join(f"{name:>15s}" for name in SETS))
    for name, row in PUBLISHED.items():
        print(f"{name + ' (published)':30s}" + "".join(f"{value:15.3f}" for value in row))
    for name, row in ours.items():
        print(f"{name + ' (measured)':30s}" + "".join(f"{value:15.4f}" for value in row) + f"   {seconds[name]} s")
    print(f"{'asked of the mixture':30s}" + "".join(f"{value:15.3f}" for value in ASKED))
    result = {"sets": list(SETS), "seeds": options.seeds, "published": PUBLISHED, "measured": ours, "seconds": seconds}
    print(save("classical_tables", result))


if __name__ == "__main__":
    main()
