"""The simple three-expert mixture over many seeds: published | ours.

    python -m benchmarks.three_experts

Experts trained on pairs of classes, a dense gate trained after them (examples/three_experts.py). The published figures
are of one run with generated data of the same kind; what must hold is their order: the mixture above every expert.
"""

import argparse
from statistics import mean, stdev

from benchmarks.common import save
from examples.three_experts import run

PUBLISHED = {"expert (0, 1)": 0.466, "expert (1, 2)": 0.496, "expert (0, 2)": 0.378, "mixture, gate trained": 0.614}


def main() -> None:
    """Measure, print, and write benchmarks/results/three_experts.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    results = [run(seed) for seed in range(seeds)]
    rows = {
        name: {
            "published": PUBLISHED.get(name),
            "ours": round(mean(r[name] for r in results), 3),
            "standard deviation": round(stdev(r[name] for r in results), 3),
        }
        for name in results[0]
    }
    experts = [name for name in rows if name.startswith("expert")]
    above = sum(r["mixture, gate trained"] > max(r[name] for name in experts) for r in results)
    for name, row in rows.items():
        print(f"{name:24} {row['published'] or '-':>6} | {row['ours']:.3f} +- {row['standard deviation']:.3f}")
    print(f"the mixture is above every expert in {above} of {seeds} seeds")
    print(save("three_experts", {"accuracy": rows, "seeds": seeds, "mixture above every expert in": above}))


if __name__ == "__main__":
    main()
