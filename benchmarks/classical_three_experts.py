"""Three experts that each know two of three classes: what a gate, trained afterwards or with them, makes of them.

    python -m benchmarks.classical_three_experts

A small example of tutorials: 5000 x 4 numbers, three classes, three classifiers trained on one pair of labels each,
then a gate over the finished classifiers. Published in one of them: experts .466 .496 .378, mixture .614. Its data are
not given; ours are three normal classes, one of them wider. Means over 20 seeds, on 2500 held-out rows.
"""

import argparse
import warnings

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from benchmarks.common import save
from mixtura.classical import MoEClassifier

PAIRS = ((0, 1), (0, 2), (1, 2))
PUBLISHED = {"expert 0-1": 0.466, "expert 0-2": 0.496, "expert 1-2": 0.378, "gate over finished experts": 0.614}


def generate(rng: np.random.Generator, rows: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Three normal classes in four dimensions, one of them twice as wide."""
    means = np.array([[1.2, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 1.2, 0]])
    y = rng.integers(0, 3, size=rows)
    return means[y] + np.array([1.0, 1.0, 1.6])[y, None] * rng.normal(size=(rows, 4)), y


def one(seed: int) -> dict[str, float]:
    """Accuracies of one seed."""
    rng = np.random.default_rng(seed)
    (X, y), (test_X, test_y) = generate(rng), generate(rng, 2500)
    found, experts = {}, []
    for pair in PAIRS:
        rows = np.isin(y, pair)
        experts.append(LogisticRegression().fit(X[rows], y[rows]))
        found[f"expert {pair[0]}-{pair[1]}"] = experts[-1].score(test_X, test_y)
    frozen = [FrozenEstimator(expert) for expert in experts]
    votes = np.stack([expert.predict(test_X) for expert in experts], axis=1)
    majority = np.array([np.bincount(row, minlength=3).argmax() for row in votes])
    found["majority vote"] = float((majority == test_y).mean())
    for name, gate in [
        ("constant weights over finished experts", "constant"),
        ("gate over finished experts", "softmax"),
    ]:
        found[name] = MoEClassifier(expert=frozen, gate=gate, random_state=seed).fit(X, y).score(test_X, test_y)
    joint = MoEClassifier(3, n_init=1, tol=1e-4, random_state=seed).fit(X, y)
    found["experts and gate trained together"] = joint.score(test_X, test_y)
    return found


def main() -> None:
    """Run all seeds, print means beside the published figures, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    runs = [one(seed) for seed in range(options.seeds)]
    ours = {name: round(float(np.mean([run[name] for run in runs])), 4) for name in runs[0]}
    best_single = max(ours[name] for name in list(ours)[:3])
    better = sum(run["gate over finished experts"] > max(list(run.values())[:3]) for run in runs)
    for name, value in ours.items():
        print(f"{name:42s} published {PUBLISHED.get(name, float('nan')):6.3f}   ours {value:.4f}")
    gain = ours["gate over finished experts"] - best_single
    print(f"the gate beats the best expert in {better} of {options.seeds} seeds, on average by {gain:.3f}")
    result = {"seeds": options.seeds, "published": PUBLISHED, "ours": ours, "seeds where the gate is best": better}
    print(save("classical_three_experts", result))


if __name__ == "__main__":
    main()
