"""torch.compile: one graph per layer, the eager layer's numbers, and no new graph because tokens went elsewhere.

Every combination of the table passed once by hand; compiling takes seconds, so a few of them run here.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.routers import ROUTERS
from tests.contracts.cases import D, build

LOSSES = {"load_balance": 0.1, "z": 0.1, "importance": 0.1, "load": 0.1}
GPT_CONFIG = GPTConfig(vocab_size=31, context=16, dim=16, heads=2, hidden=16, num_experts=4)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No graph of another test; routers with one choice may warn."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="with k=1")
        yield


def compiled(module, *, fullgraph=True, backend="aot_eager"):
    """The compiled module and what counts its graphs."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=fullgraph), counter


def assert_same(layer, twin):
    """Gradients and buffers of two layers."""
    for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)
    for (name, a), b in zip(layer.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), name


def step(run, x, **known):
    """Output and input gradient under a fixed seed, since some routers draw noise."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    y = run(x, **known)
    y.sin().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize(
    ("router", "experts", "policy", "training"),
    [
        ("topk", "swiglu", "dropless", True),
        ("switch jitter", "gelu with bias", "drop", True),
        ("noisy_topk", "swiglu", "priority", True),
        ("sigmoid_bias", "gelu with bias", "dropless", False),
    ],
)
def test_one_graph_serves_all_counts(router, experts, policy, training):
    options = {"losses": LOSSES, "shared": mx.MLP(dim=D, hidden=5), "shared_gate": "sigmoid"} if training else {}
    layer = build(router, experts, policy, **options).train(training)
    twin = copy.deepcopy(layer)
    run, counter = compiled(layer)
    spread, together = torch.randn(3, 8, D), torch.randn(D).expand(3, 8, D)
    for x in (spread, together):
        known = {"mask": torch.rand(3, 8) > 0.3, "priority": torch.rand(3, 8)} if training else {}
        for got, expected in zip(step(run, x, **known), step(twin, x, **known), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert_same(layer, twin)
    assert counter.frame_count == 1


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_is_one_graph(router):
    layer = mx.MoEConfig(dim=D, hidden=8, num_experts=4, router=router, capacity_factor=1.0).build()
    run, counter = compiled(layer, backend="eager")
    x, known = torch.randn(9, D), {"context": torch.arange(9)} if layer.router.needs_context else {}
    got, expected = (step(lambda x, each=each: each(x, **known), x)[0] for each in (run, layer))
    torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1


def test_a_dynamic_number_of_tokens_is_one_graph():
    layer = mx.MoEConfig(dim=D, hidden=8, num_experts=4, k=2, capacity_factor=1.25, losses=LOSSES).build()
    run, counter = compiled(layer)
    for tokens in (17, 40, 5):
        x = torch.randn(tokens, D, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        y = run(x)
        torch.testing.assert_close(y, layer(x), atol=1e-6, rtol=1e-5)
        y.sum().backward()
    assert counter.frame_count == 1


def test_autocast_inside_the_graph():
    layer = mx.MoEConfig(dim=D, hidden=8, num_experts=4, k=2, losses=LOSSES).build()
    twin = copy.deepcopy(layer)
    run, counter = compiled(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [step(each, torch.ones(9, D) * torch.arange(9).view(9, 1) / 9) for each in (run, twin)]
    torch.testing.assert_close(*results)
    assert results[0][0].dtype is torch.float32
    assert_same(layer, twin)
    assert counter.frame_count == 1


@pytest.mark.parametrize("router", ["topk", "sigmoid_bias"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside the graph", "around the compiled layer"])
def test_recomputation_counts_once(router, inside):
    layer = mx.MoEConfig(dim=D, hidden=8, num_experts=4, k=2, router=router, losses=LOSSES).build()
    twin, x = copy.deepcopy(layer), torch.randn(9, D)
    if inside:
        run, _ = compiled(lambda x: checkpoint(layer, x, use_reentrant=False))
    else:
        inner, _ = compiled(layer)

        def run(x):
            return checkpoint(inner, x, use_reentrant=False)

    for _ in range(2):
        for got, expected in zip(step(run, x), step(twin, x), strict=True):
            torch.testing.assert_close(got, expected)
    assert_same(layer, twin)


def losses_and_log(run, ids):
    with mx.record(run) as log, mx.collect_losses(run) as losses:
        logits = run(ids)
    (logits.square().mean() + losses.total()).backward()
    return log, losses


@pytest.mark.parametrize("recompute_interval", [0, 1])
def test_a_compiled_model_records_collects_and_replays(recompute_interval):
    model = GPT(GPT_CONFIG, recompute_interval=recompute_interval)
    twin, ids = copy.deepcopy(model), torch.randint(31, (2, 9))
    run, counter = compiled(model, fullgraph=False, backend="eager")
    run(ids)
    graphs = []
    for _ in range(3):
        log, losses = losses_and_log(run, ids)
        expected_log, expected = losses_and_log(twin, ids)
        assert list(log) == list(expected_log) == ["blocks.0.feed_forward", "blocks.1.feed_forward"]
        for name, records in expected_log.items():
            assert len(log[name]) == len(records) == 1
            assert torch.equal(log[name][0].counts_E(), records[0].counts_E())
        assert [entry[:2] for entry in losses.weighted] == [entry[:2] for entry in expected.weighted]
        torch.testing.assert_close(losses.total(), expected.total())
        assert_same(model, twin)
        graphs.append(counter.frame_count)
    assert graphs[1:] == graphs[:1] * 2
    other = torch.randint(31, (2, 9))
    with mx.replay(run, log), mx.record(run) as again:
        run(other)
    for name, records in log.items():
        assert torch.equal(records[0].routing.expert_N, again[name][0].routing.expert_N)


def test_a_full_graph_says_why_it_cannot_record():
    layer, x = mx.MoEConfig(dim=D, hidden=8, num_experts=4, k=2).build(), torch.randn(9, D)
    run, _ = compiled(layer, backend="eager")
    with torch.compiler.set_stance("force_eager"), mx.record(layer) as log:
        run(x)
    assert len(log[""]) == 1
    with mx.record(layer), pytest.raises(RuntimeError, match="compile without fullgraph=True"):
        run(x)


def test_modules_as_experts_run_outside_the_graph():
    experts = mx.ModuleExperts([nn.Linear(D, D) if e else mx.MLP(dim=D, hidden=7) for e in range(3)])
    layer = mx.MoE(router=mx.routers.TopK(D, num_experts=3, k=2), experts=experts)
    twin = copy.deepcopy(layer)
    run, counter = compiled(layer, fullgraph=False)
    graphs = []
    for _ in range(3):
        x = torch.randn(20, D)
        for got, expected in zip(step(run, x), step(twin, x), strict=True):
            torch.testing.assert_close(got, expected)
        graphs.append(counter.frame_count)
    assert_same(layer, twin)
    assert graphs[2] == graphs[0]
