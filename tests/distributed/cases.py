"""A small model trained for some steps, alone or on a mesh: what must come out equal."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

import mixtura as mx
from mixtura.parallel.clip import clip_grad_norm
from mixtura.parallel.mesh import make_mesh
from mixtura.parallel.shard import parallelize
from mixtura.routers import update_biases
from tests.contracts.cases import D, build

STEPS = 5
EVEN = "gelu with bias and an even width"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its tokens, and how it is spread.

    `tokens` holds the number of each data rank's tokens; with several `routers` every block has its own, and all blocks
    see the same tokens, so that no block's rounding moves another's choice.
    """

    mesh: dict[str, int]
    tokens: tuple[int, ...]
    router: str = "topk"
    routers: tuple[str, ...] = ()
    passes: int = 1
    ddp: bool = False
    experts: str = "swiglu"
    policy: str = "dropless"
    num: int = 5
    shared: bool = False
    focus: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"load_balance": 0.1, "z": 0.01})
    optimizer: str = "sgd"

    def alone(self) -> "Case":
        return replace(self, mesh={}, ddp=False)


class Block(nn.Module):
    """A mixture behind a dense matrix, in a residual branch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.dense = nn.Linear(D, D)
        shared = mx.MLP(dim=D, hidden=4) if case.shared else None
        kind = "swiglu" if case.experts == EVEN else case.experts
        self.mixture = build(case.router, kind, case.policy, num=case.num, losses=dict(case.losses), shared=shared)
        if case.experts == EVEN:
            self.mixture.experts = mx.GroupedMLP(num_experts=case.num, dim=D, hidden=8, activation="gelu", bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixture(torch.tanh(self.dense(x)))


class Model(nn.Module):
    """Two blocks and a head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        blocks = [replace(case, router=router) for router in case.routers or (case.router,) * 2]
        self.blocks, self.beside = nn.ModuleList(Block(each) for each in blocks), bool(case.routers)
        self.head = nn.Linear(D, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.beside:
            return self.head(sum(block(x) for block in self.blocks) / len(self.blocks))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_model(case: Case) -> Model:
    torch.manual_seed(7)
    model = Model(case)
    if case.focus:  # all tokens to one expert
        for block in model.blocks:
            block.mixture.router.weight.data[1:] = -case.focus
            block.mixture.router.weight.data[0] = case.focus
            block.dense.weight.data.zero_()
            block.dense.bias.data.fill_(3.0)
    return model


def batch(case: Case, data_rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + data_rank)
    T = case.tokens[data_rank]
    return torch.randn(T, D, generator=generator), torch.randn(T, 3, generator=generator)


def loss_of(model: nn.Module, case: Case, data_rank: int, step: int) -> Tensor:
    """The rank's part of the mean over all tokens, times the number of ranks, so that the ranks' mean is that mean."""
    x, target = batch(case, data_rank, step)
    torch.manual_seed(1000 * step + data_rank)  # the noise of a router
    return (model(x) - target).square().sum() * len(case.tokens) / sum(case.tokens)


def make_optimizer(model: nn.Module, case: Case) -> torch.optim.Optimizer:
    groups = mx.param_groups(model, lr=0.1 if case.optimizer == "sgd" else 1e-2, weight_decay=0.01)
    if case.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups, eps=1e-3)


def plain(tensor: Tensor) -> np.ndarray:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().numpy().copy()


def train(case: Case, steps: int = STEPS) -> dict[str, Any]:
    """Losses and norms of each step, gradients of the first and the last, parameters and buffers at the end."""
    model = make_model(case)
    data_ranks = list(range(len(case.tokens)))
    outer: nn.Module = model
    if case.ddp:
        outer = nn.parallel.DistributedDataParallel(model)
    elif case.mesh:
        parallelize(model, make_mesh(**case.mesh), **case.options)
    if case.mesh:
        data_ranks = [dist.get_rank() // case.mesh.get("tp", 1)]
    optimizer = make_optimizer(model, case)
    losses, norms, grads = [], [], []
    for step in range(steps):
        total = 0.0
        for data_rank in data_ranks:
            if case.mesh:
                for _ in range(case.passes):
                    loss = loss_of(outer, case, data_rank, step)
                    loss.backward()  # balance losses are attached
            else:  # where they would not be divided
                with mx.collect_losses(model) as collected:
                    loss = loss_of(model, case, data_rank, step)
                ((loss + collected.total()) * case.passes / len(case.tokens)).backward()
            total += loss.item() / len(case.tokens)
        norms.append((clip_grad_norm if case.mesh else clip_alone)(model, 0.5).item())
        if step in (0, steps - 1):  # gathering them from all ranks takes as long as a step
            grads.append({name: plain(p.grad) for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
        update_biases(model)
        losses.append(total)
    return {
        "losses": losses,
        "norms": norms,
        "grads": grads,
        "parameters": {name: plain(p) for name, p in model.named_parameters()},
        "buffers": {name: plain(b) for name, b in model.named_buffers()},
    }


def clip_alone(model: nn.Module, max_norm: float) -> Tensor:
    for parameter in model.parameters():  # on a mesh what one rank does not use has a gradient of zeros
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def merged(ranks: list[dict[str, Any]], *, tp: int = 1) -> dict[str, Any]:
    """One result of those of all ranks: module experts are only on their own."""
    steps = zip(*(r["grads"] for r in ranks), strict=True)
    return {
        "losses": np.sum([r["losses"] for r in ranks[::tp]], axis=0),
        "norms": ranks[0]["norms"],
        "grads": [{name: value for grads in step for name, value in grads.items()} for step in steps],
        "parameters": {name: value for r in ranks for name, value in r["parameters"].items()},
        "buffers": {name: value for r in ranks for name, value in r["buffers"].items()},
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Losses and norms of every step, gradients, parameters and buffers: to 1e-5 in fp32."""
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["norms"], expected["norms"], rtol=1e-5)
    for step, grads, wanted in zip(("first", "last"), found["grads"], expected["grads"], strict=True):
        assert grads.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(grads[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=f"{step} step, {name}")
    for part in ("parameters", "buffers"):
        assert found[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            np.testing.assert_allclose(found[part][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
