"""The simple mixture of three experts: train the experts apart, then the gate over them, then all together.

    python examples/three_experts.py [SEEDS]

5,000 points with four numbers each in three classes that overlap. Each expert is trained on two of the classes and
never sees the third; a dense gate then learns whom to believe where.
"""

import sys
from statistics import mean

import torch
from torch import Tensor, nn

import mixtura as mx

DIM, CLASSES, POINTS = 4, 3, 5000
PAIRS = [(0, 1), (1, 2), (0, 2)]


def make_points() -> tuple[Tensor, Tensor]:
    """Gaussian points; class 0 lies to the right, class 1 below, class 2 to the left."""
    y = torch.randint(CLASSES, (POINTS,))
    x = torch.randn(POINTS, DIM)
    x[:, 0] += 1.0 * (y == 0) - 1.0 * (y == 2)
    x[:, 1] -= 1.0 * (y == 1)
    return x, y


def expert() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def fit(model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 150) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(-1) == y).float().mean().item()


def run(seed: int) -> dict[str, float]:
    """Accuracy on held-out points of each expert, of the mixture with frozen experts, and after joint training."""
    torch.manual_seed(seed)
    x, y = make_points()
    x_train, y_train, x_test, y_test = x[:4000], y[:4000], x[4000:], y[4000:]
    experts = [expert() for _ in PAIRS]
    for model, pair in zip(experts, PAIRS, strict=True):
        own = torch.isin(y_train, torch.tensor(pair))
        fit(model, x_train[own], y_train[own])
    result = {f"expert {pair}": accuracy(model, x_test, y_test) for model, pair in zip(experts, PAIRS, strict=True)}

    mixture = mx.MoE(router=mx.routers.Dense(DIM, num_experts=3), experts=mx.ModuleExperts(experts))
    mixture.experts.requires_grad_(requires_grad=False)
    fit(mixture, x_train, y_train)
    result["mixture, gate trained"] = accuracy(mixture, x_test, y_test)
    mixture.requires_grad_(requires_grad=True)
    fit(mixture, x_train, y_train)
    result["mixture, all trained"] = accuracy(mixture, x_test, y_test)
    return result


def main() -> None:
    results = [run(seed) for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)]
    for name in results[0]:
        print(f"{name:24} {mean(result[name] for result in results):.3f}")


if __name__ == "__main__":
    main()
