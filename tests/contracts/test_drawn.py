"""Whole configurations drawn at random: the layer must give what the loops give. A failure becomes a row."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mixtura as mx
from mixtura.dispatch import Capacity
from mixtura.kernels import ACTIVATIONS
from mixtura.losses import LOSSES, PARAMETER_LOSSES
from tests.contracts.cases import ROUTERS, give_context
from tests.contracts.loop import moe_loop
from tests.contracts.test_layers import assert_equal_gradients, gradients

POLICIES = ("dropless", "drop", "priority", "reroute")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One configuration and the sizes of its input."""

    router: str
    num: int
    k: int
    dim: int
    hidden: int
    activation: str
    bias: bool
    modules: bool
    capacity: Capacity
    pooling: str
    shared_gate: str | None
    losses: dict[str, float]
    shape: tuple[int, ...]
    masked: bool
    scored: bool
    seed: int


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    """Every way to say how many rows an expert takes."""
    minimum = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["factor", "fixed", "automatic"]))
    maximum = minimum + draw(st.integers(0, 6)) if kind == "automatic" or draw(st.booleans()) else None
    if kind == "factor":
        factor = draw(st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.25, 2.0, 7.0]))
        return Capacity(factor=factor, multiple_of=draw(st.integers(1, 4)), minimum=minimum, maximum=maximum)
    return Capacity(fixed=draw(st.integers(1, 9))) if kind == "fixed" else Capacity(minimum=minimum, maximum=maximum)


@st.composite
def configurations(draw: st.DrawFn, *, policy: str, training: bool) -> Drawn:
    """Any combination of the parts that the layer takes."""
    router = draw(st.sampled_from(sorted(ROUTERS)))
    num = draw(st.integers(1, 7))
    num = max(num, 2) if "gshard" in router else 6 if router.startswith("hierarchical") else num
    shapes = st.one_of(st.tuples(st.integers(0, 12)), st.tuples(st.integers(1, 3), st.integers(0, 5)))
    poolings = ["sum"] if training or router == "soft" else ["sum", "highest", "vote"]
    return Drawn(
        router=router,
        num=num,
        k=1 if ROUTERS[router].one_choice else draw(st.integers(1, num)),
        dim=draw(st.integers(2, 9)),
        hidden=draw(st.integers(1, 9)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        bias=draw(st.booleans()),
        modules=draw(st.booleans()),
        capacity=Capacity() if policy == "dropless" else draw(capacities()),
        pooling=draw(st.sampled_from(poolings)),
        shared_gate=draw(st.sampled_from([None, "no gate", "sigmoid", "softmax"])),
        losses=dict.fromkeys(draw(st.sets(st.sampled_from(sorted({**LOSSES, **PARAMETER_LOSSES})))), 0.01),
        shape=draw(shapes),
        masked=draw(st.booleans()),
        scored=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def build(drawn: Drawn, policy: str) -> mx.MoE:
    """The layer, with a router that has an opinion."""
    case, size = ROUTERS[drawn.router], {"dim": drawn.dim, "hidden": drawn.hidden}
    options: dict[str, Any] = {"activation": drawn.activation, "bias": drawn.bias}
    experts: nn.Module = mx.GroupedMLP(num_experts=drawn.num, **size, **options)
    if drawn.modules:
        experts = mx.ModuleExperts(
            [nn.Linear(drawn.dim, drawn.dim) if e % 2 else mx.MLP(**size) for e in range(drawn.num)]
        )
    router = case.make(drawn.dim, drawn.num, drawn.k)
    refused = {"orthogonality": drawn.modules, "router_orthogonality": router.weight is None}
    layer = mx.MoE(
        router=router,
        experts=experts,
        capacity=drawn.capacity,
        policy="drop" if policy == "dropless" else policy,
        losses={name: value for name, value in drawn.losses.items() if not refused.get(name)},
        shared=mx.MLP(**size) if drawn.shared_gate else None,
        shared_gate=None if drawn.shared_gate == "no gate" else drawn.shared_gate,
        pooling=drawn.pooling,
    )
    if layer.router.weight is not None:
        nn.init.normal_(layer.router.weight, std=0.6)
    if case.context is not None:
        give_context(layer, case.context)
    return layer


def routed(layer: mx.MoE, x: Tensor, mask: Tensor | None) -> mx.Routing:
    """The layer's routing, drawn from the seed that its forward starts from."""
    x_TD, sequences = x.flatten(0, -2), len(x) if x.ndim == 3 else 1
    mask_T, known = None if mask is None else mask.flatten(), {}
    if layer.router.needs_mask:
        known["mask_T"] = mask_T
    if layer.router.needs_sequences:
        known["sequences"] = sequences
    return replace(layer.router(x_TD, **known), mask_T=mask_T, sequences=sequences)


BASE = Drawn(
    router="base",
    num=1,
    k=1,
    dim=2,
    hidden=1,
    activation="clamped_swiglu",
    bias=False,
    modules=False,
    capacity=Capacity(fixed=1),
    pooling="sum",
    shared_gate=None,
    losses={"entropy": 0.01},
    shape=(0,),
    masked=False,
    scored=False,
    seed=0,
)
# Configurations that once failed, the loops' own faults among them -> policy, training, configuration.
ROWS: dict[str, tuple[str, bool, Drawn]] = {
    "slots of no tokens": ("dropless", False, replace(BASE, router="soft", capacity=Capacity(), shape=(2, 0))),
    "losses and an output of nothing": ("reroute", True, BASE),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_drawn_layer_gives_what_the_loops_give(policy, training, data):
    check(data.draw(configurations(policy=policy, training=training)), policy, training=training)


@pytest.mark.parametrize("row", ROWS)
def test_what_once_failed(row):
    policy, training, drawn = ROWS[row]
    check(drawn, policy, training=training)


def check(drawn: Drawn, policy: str, *, training: bool) -> None:
    """Without the warnings that small numbers rightly give."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="with k=1|expected a capacity")
        compare(drawn, policy, training=training)


def compare(drawn: Drawn, policy: str, *, training: bool) -> None:
    """Output and every gradient, losses included, beside the loops."""
    torch.manual_seed(drawn.seed)
    layer = build(drawn, policy).train(training)
    x = torch.randn(*drawn.shape, drawn.dim, requires_grad=True)
    mask = torch.rand(drawn.shape) < 0.7 if drawn.masked else None
    priority = torch.rand(drawn.shape) if drawn.scored else None
    weight = torch.randn(*drawn.shape, drawn.dim)
    state = torch.get_rng_state()
    with mx.collect_losses(layer) as losses:
        y = layer(x, mask=mask, priority=priority)
    assert y.shape == x.shape
    torch.set_rng_state(state)
    routing = routed(layer, x, mask)
    scores = None if priority is None else priority.flatten().tolist()
    expected = moe_loop(layer, x.flatten(0, -2), routing, priority=scores).view(x.shape)
    expected = expected + 0 * x  # so that it has a gradient even where all is dropped
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    total = losses.total()
    assert total.isfinite()
    if total.requires_grad:
        grads = torch.autograd.grad(total, [x, *layer.parameters()], allow_unused=True, retain_graph=True)
        assert all(grad is None or grad.isfinite().all() for grad in grads)
    if y.requires_grad:
        assert_equal_gradients(gradients(layer, x, y, weight), gradients(layer, x, expected, weight))
