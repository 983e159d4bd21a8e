"""Do mixtures of experts reach the criterion in half the epochs of backpropagation? Jacobs et al. (1991), vowels.

    python -m benchmarks.classical_vowels

The formants of Peterson and Barney are not free to pass on, so tokens are drawn: four vowels, 75 speakers of three
kinds (men, women, children) with their published mean formants, a factor for each speaker and one for each token; two
tokens a vowel, the first 50 speakers train, the last 25 test. As in the paper: linear experts, a linear softmax gate,
gradient descent on `-log sum_k p_k exp(-|y - o_k|^2 / 2)` against a network with one hidden layer and squared error,
until the mean squared error of the training outputs falls to 0.08; 25 runs. Every system gets a step size chosen on as
many other runs, of a grid whose ends lose: the smallest that needs at most 5 % more epochs than the best; full-batch
steps. EM fits the same mixture (unit noise), counted in iterations to the same criterion.
"""

import argparse
import warnings
from typing import Any

import numpy as np

from benchmarks.common import save
from mixtura.classical import LinearExpert
from mixtura.classical.data import Data
from mixtura.classical.em import Task, iterate, start
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.initial import first_division

# First and second formant in Hz of men, women and children: heed, hid, hod, hud (Peterson and Barney 1952, table II).
FORMANTS = np.array(
    [
        [[270, 2290], [310, 2790], [370, 3200]],
        [[390, 1990], [430, 2480], [530, 2730]],
        [[730, 1090], [850, 1220], [1030, 1370]],
        [[640, 1190], [760, 1400], [850, 1590]],
    ],
    dtype=float,
)
CRITERION = 0.08
RATES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
CLOSE = 1.05  # to the fewest epochs: beside the fastest step size stands divergence, so a smaller one as good is taken
LIMIT = 5000
TUNING_SEEDS = 1000  # the first seed of the runs that choose a step size
PUBLISHED = {"4 experts": 1124, "8 experts": 1083, "network, 6 hidden": 2209, "network, 12 hidden": 2435}


def tokens(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised formants (600, 2), one-hot vowels (600, 4), and which rows train."""
    kind = rng.choice(3, size=75, p=[0.44, 0.37, 0.19])
    speaker = np.exp(0.05 * rng.normal(size=(75, 1, 1, 2)))
    token = np.exp(0.06 * rng.normal(size=(75, 4, 2, 2)))
    formants = np.log(FORMANTS[:, kind].transpose(1, 0, 2)[:, :, None] * speaker * token)
    X = formants.reshape(-1, 2)
    labels = np.tile(np.repeat(np.eye(4), 2, axis=0), (75, 1))
    train = np.repeat(np.arange(75) < 50, 8)
    return (X - X[train].mean(axis=0)) / X[train].std(axis=0), labels, train


def mixture(X: np.ndarray, y: np.ndarray, *, experts: int, rate: float, rng: np.random.Generator) -> tuple[int, Any]:
    """Gradient descent of a mixture: epochs to the criterion (LIMIT if never) and the fitted predictor."""
    ones = np.column_stack([X, np.ones(len(X))])
    lines, gate = 0.1 * rng.normal(size=(experts, 3, 4)), 0.1 * rng.normal(size=(3, experts))

    def forward(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.exp(rows @ gate - (rows @ gate).max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True), np.einsum("nd,kdo->nko", rows, lines)

    epoch = 0
    while epoch < LIMIT:
        epoch += 1
        share, outputs = forward(ones)
        error = y[:, None] - outputs
        reached = ((y - np.einsum("nk,nko->no", share, outputs)) ** 2).mean()
        if reached <= CRITERION:
            break
        if not np.isfinite(reached):
            epoch = LIMIT
        posterior = share * np.exp(-0.5 * (error**2).sum(axis=2))
        posterior /= posterior.sum(axis=1, keepdims=True)
        lines += rate * np.einsum("nd,nk,nko->kdo", ones, posterior, error) / len(X)
        gate += rate * ones.T @ (posterior - share) / len(X)

    def predict(rows: np.ndarray) -> np.ndarray:
        share, outputs = forward(np.column_stack([rows, np.ones(len(rows))]))
        return np.einsum("nk,nko->no", share, outputs)

    return epoch, predict


def network(X: np.ndarray, y: np.ndarray, *, hidden: int, rate: float, rng: np.random.Generator) -> tuple[int, Any]:
    """Gradient descent of a network with tanh units: epochs to the criterion (LIMIT if never) and the predictor."""
    ones = np.column_stack([X, np.ones(len(X))])
    first, second = 0.3 * rng.normal(size=(3, hidden)), 0.3 * rng.normal(size=(hidden + 1, 4))

    def forward(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        units = np.column_stack([np.tanh(rows @ first), np.ones(len(rows))])
        return units, units @ second

    epoch = 0
    while epoch < LIMIT:
        epoch += 1
        units, outputs = forward(ones)
        error = y - outputs
        if (reached := (error**2).mean()) <= CRITERION:
            break
        if not np.isfinite(reached):
            epoch = LIMIT
        back = error @ second[:-1].T * (1 - units[:, :-1] ** 2)
        second += rate * units.T @ error / len(X)
        first += rate * ones.T @ back / len(X)
    return epoch, lambda rows: forward(np.column_stack([rows, np.ones(len(rows))]))[1]


def em(X: np.ndarray, y: np.ndarray, *, experts: int, seed: int) -> tuple[int, Any]:
    """EM of the same mixture: iterations to the criterion and the predictor."""
    data = Data(X=X, y=y, sample_weight=np.ones(len(X)))
    task = Task(
        gate=SoftmaxGate().bind(data, experts),
        experts=LinearExpert(variance_floor=1.0 / float(y.var(axis=0).min())).bind(data, experts),  # unit noise
        sample_weight=data.sample_weight,
        n_experts=experts,
        tol=0.0,
        max_iter=LIMIT,
    )
    progress = start(data, first_division(data, experts, restart=1, seed=seed))

    def predict(rows: np.ndarray) -> np.ndarray:
        assert progress.current is not None
        share = np.exp(progress.current.gate.log_proba(rows))
        return np.einsum("nk,nko->no", share, progress.current.experts.mean(rows))

    for iteration in range(1, 201):
        progress = iterate(task, progress)
        if ((y - predict(X)) ** 2).mean() <= CRITERION:
            return iteration, predict
    return LIMIT, predict


def measure(fit: Any, seeds: range) -> dict[str, float]:
    """Mean and spread of the epochs, and mean test accuracy, over the runs; each has its own tokens and start."""
    epochs, right = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        X, y, train = tokens(rng)
        count, predict = fit(X[train], y[train], rng, seed)
        epochs.append(count)
        right.append((predict(X[~train]).argmax(axis=1) == y[~train].argmax(axis=1)).mean())
    return {
        "epochs": round(float(np.mean(epochs)), 1),
        "sd": round(float(np.std(epochs)), 1),
        "never": int(np.sum(np.array(epochs) >= LIMIT)),
        "test accuracy": round(float(np.mean(right)), 3),
    }


def tuned(fit: Any, runs: int) -> dict[str, Any]:
    """The step size chosen on runs of their own, the epochs of every one tried there, and the runs with it."""
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + runs)
    tried = {rate: measure(lambda *a, r=rate: fit(r, *a), seeds)["epochs"] for rate in RATES}
    best = min(rate for rate in RATES if tried[rate] <= CLOSE * min(tried.values()))
    return {"step size": best, "tried": tried, **measure(lambda *a: fit(best, *a), range(runs))}


def main() -> None:
    """Run every system, print beside the published epochs, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=25)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # a step size that diverges overflows, and loses
    ours: dict[str, dict[str, float]] = {}
    for count in (4, 8):
        ours[f"{count} experts"] = tuned(
            lambda rate, X, y, rng, _, k=count: mixture(X, y, experts=k, rate=rate, rng=rng), options.runs
        )
    for count in (6, 12):
        ours[f"network, {count} hidden"] = tuned(
            lambda rate, X, y, rng, _, h=count: network(X, y, hidden=h, rate=rate, rng=rng), options.runs
        )
    for count in (4, 8):
        ours[f"{count} experts by EM"] = measure(
            lambda X, y, _, seed, k=count: em(X, y, experts=k, seed=seed), range(options.runs)
        )
    for name, row in ours.items():
        print(f"{name:22s} published {PUBLISHED.get(name, '-'):>6}   ours {row}")
    ratio = ours["network, 6 hidden"]["epochs"] / ours["4 experts"]["epochs"]
    print(f"epochs of the network (6 hidden) over those of 4 experts: published {2209 / 1124:.2f}, ours {ratio:.2f}")
    result = {"runs": options.runs, "published": PUBLISHED, "ours": ours, "ratio": round(ratio, 2)}
    print(save("classical_vowels", result))


if __name__ == "__main__":
    main()
