"""What does one EM iteration cost? A million rows x 20 columns, 8 linear experts, softmax gate, against its products.

    python -m benchmarks.classical_speed [--only-tree]

The products are, for every expert, the weighted `X' R X` and `X' R y` that any M-step of linear experts needs: once as
plain numpy writes them, once as mixtura forms them block by block. Memory is the peak of the resident set during the
iterations minus what the process held before the data, in units of the data. Then, in processor time, a
hierarchy of sixteen linear experts on 15,000 rows of the arm, by EM and on-line; `--only-tree` measures it alone and
keeps the other figures.
"""

import argparse
import resource
import threading
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import arm
from benchmarks.common import load, machine, save
from mixtura.classical import HMERegressor
from mixtura.classical.columns import Columns
from mixtura.classical.data import Data
from mixtura.classical.em import Task, iterate, start
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.least_squares import weighted_gram


def resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


class Peak:
    """The largest resident set while a block runs, sampled every 2 ms."""

    def __enter__(self) -> "Peak":
        self.bytes, self.on = resident(), True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.on:
            self.bytes = max(self.bytes, resident())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.thread.join()


def generate(rows: int, columns: int, experts: int) -> Data:
    """Rows of a known mixture."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, columns))
    choice = (X @ (2 * rng.normal(size=(columns, experts)))).argmax(axis=1)
    y = np.einsum("nd,nd->n", X, rng.normal(size=(experts, columns))[choice]) + 0.1 * rng.normal(size=rows)
    return Data(X=X, y=y[:, None], sample_weight=np.ones(rows))


def plain(data: Data, weights: np.ndarray) -> float:
    """Seconds of the products as plain numpy writes them."""
    begin = time.perf_counter()
    for k in range(weights.shape[1]):
        weighted = weights[:, k, None] * data.X
        weighted.T @ data.X, weighted.T @ data.y
    return time.perf_counter() - begin


def blockwise(columns: Columns, data: Data, weights: np.ndarray) -> float:
    """Seconds of the products as mixtura forms them."""
    begin = time.perf_counter()
    weighted_gram(columns, weights, data.y)
    return time.perf_counter() - begin


def tree(rows: int = 15_000, *, iterations: int = 20, repeats: int = 3) -> dict[str, float]:
    """Processor seconds of an EM iteration and an on-line epoch of a tree of sixteen leaves, new rows each repeat."""
    by_em, online = [], []
    for seed in range(repeats):
        X, y = arm.sample(rows, np.random.default_rng(seed))
        model = HMERegressor(depth=4, n_init=1, tol=0.0, max_iter=iterations, random_state=seed)
        begin = time.process_time()
        model.fit(X, y)
        by_em.append((time.process_time() - begin) / iterations)
        begin = time.process_time()
        HMERegressor(depth=4, random_state=seed).partial_fit(X, y)
        online.append(time.process_time() - begin)
    leaves = len(model.tree_.leaves)
    return {
        "rows": rows,
        "leaves": leaves,
        "EM iteration": round(median(by_em), 3),
        "on-line epoch": round(median(online), 2),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-tree", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # no fit here is meant to converge
    before = load("classical_speed") if options.only_tree else iteration(options)
    result = before | {"tree": {"machine": machine(), **tree()}}
    for name, value in result.items():
        print(f"{name}: {value}")
    print(save("classical_speed", result))


def iteration(options: argparse.Namespace) -> dict[str, Any]:
    """Interleave the products and whole iterations."""
    before = resident()
    data = generate(options.rows, options.columns, options.experts)
    size = data.X.nbytes + data.y.nbytes + data.sample_weight.nbytes
    shares = np.random.default_rng(1).random((options.experts, options.rows)).T
    task = Task(
        gate=SoftmaxGate().bind(data, options.experts),
        experts=LinearExpert().bind(data, options.experts),
        sample_weight=data.sample_weight,
        n_experts=options.experts,
        tol=0.0,
        max_iter=100,
    )
    progress = start(data, shares / shares.sum(axis=1, keepdims=True))
    del shares
    columns = Columns.of(data.X)
    seconds: dict[str, list[float]] = {"plain numpy": [], "block by block": [], "iteration": []}
    peak = 0
    for _ in range(options.repeats):
        with Peak() as seen:
            begin = time.perf_counter()
            progress = iterate(task, progress)
            seconds["iteration"].append(time.perf_counter() - begin)
        peak = max(peak, seen.bytes)
        seconds["block by block"].append(blockwise(columns, data, progress.weights))
        seconds["plain numpy"].append(plain(data, progress.weights))
    middle = {name: median(values) for name, values in seconds.items()}
    return {
        "rows": options.rows,
        "columns": options.columns,
        "experts": options.experts,
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "iteration / products, plain numpy": round(middle["iteration"] / middle["plain numpy"], 2),
        "iteration / products, block by block": round(middle["iteration"] / middle["block by block"], 2),
        "peak memory / data": round((peak - before) / size, 2),
    }


if __name__ == "__main__":
    main()
