"""What holds for every router, every kind of experts and every policy."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura.kernels import assignment, overflow
from mixtura.routers import SigmoidBias
from tests.contracts.cases import EXPERTS, POLICIES, ROUTERS, D, E, build
from tests.contracts.loop import moe_loop

routers = pytest.mark.parametrize("router", ROUTERS)
experts = pytest.mark.parametrize("experts", EXPERTS)
policies = pytest.mark.parametrize("policy", POLICIES)
# Routers that route each token by itself; of the others the table says why they do not.
token_wise = pytest.mark.parametrize("router", [name for name, case in ROUTERS.items() if not case.mixes])
# Every kind of experts and every policy, without all pairs of them.
each_once = pytest.mark.parametrize(
    ("experts", "policy"), [(kind, "dropless") for kind in EXPERTS] + [("swiglu", policy) for policy in [*POLICIES][1:]]
)
T = 17


@pytest.fixture(autouse=True)
def one_choice_may_be_constant():
    """The table also builds layers with one expert or one choice, of which some routers rightly warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="with k=1")
        yield


def seeded(run, *arguments, **options):
    """The result under a fixed seed, since some routers draw noise in training."""
    torch.manual_seed(11)
    return run(*arguments, **options)


def gradients(layer, x, y, weight):
    """Of the input and of every parameter, by name."""
    names = dict(layer.named_parameters())
    grads = torch.autograd.grad((y * weight).sum(), [x, *names.values()], allow_unused=True)
    return {name: grad for name, grad in zip(["x", *names], grads, strict=True) if grad is not None}


def assert_equal_gradients(got, expected):
    nothing = torch.zeros(())  # no gradient and a gradient of zeros say the same
    for name in got.keys() | expected.keys():
        pair = torch.broadcast_tensors(got.get(name, nothing), expected.get(name, nothing))
        torch.testing.assert_close(*pair, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@routers
@experts
@policies
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_and_gradients_are_the_loops(router, experts, policy, training):
    layer, x = build(router, experts, policy).train(training), torch.randn(T, D, requires_grad=True)
    weight = torch.randn(T, D)
    y = seeded(layer, x)
    expected = moe_loop(layer, x, seeded(layer.router, x))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    assert_equal_gradients(gradients(layer, x, y, weight), gradients(layer, x, expected, weight))


@routers
def test_the_routing_is_well_formed(router):
    for training in (True, False):
        layer = build(router).train(training)
        routing = layer.router(torch.randn(T, D))
        N, J = routing.expert_N.shape[0], routing.null_experts
        assert routing.token_N.shape == routing.expert_N.shape == routing.weight_N.shape == (N,)
        assert routing.logits_TE.shape == routing.probs_TE.shape == (T, layer.router.num_experts + J)
        assert routing.num_experts == layer.experts.num_experts
        for values in (routing.weight_N, routing.logits_TE, routing.probs_TE):
            assert values.dtype is torch.float32
        lowest, end = (-1, routing.num_experts + J) if routing.partial else (0, routing.num_experts)
        assert ((routing.expert_N >= lowest) & (routing.expert_N < end)).all()
        assert not routing.weight_N[routing.expert_N < 0].any()
        torch.testing.assert_close(routing.probs_TE.sum(-1), torch.ones(T))
        pairs = zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True)
        pairs = [(token, expert) for token, expert in pairs if expert >= 0]
        assert len(set(pairs)) == len(pairs)
        if routing.choices is not None:
            assert T * routing.choices == N
            assert torch.equal(routing.token_N, torch.arange(T).repeat_interleave(routing.choices))


@routers
@pytest.mark.parametrize("k", [1, 2, E])
def test_the_weights_sum_as_promised(router, k):
    if ROUTERS[router].weight_sum is None:
        return
    routing = build(router, k=k).router(torch.randn(T, D))
    sums_T = torch.zeros(T).index_add(0, routing.token_N, routing.weight_N)
    torch.testing.assert_close(sums_T, ROUTERS[router].weight_sum(routing))


@routers
@experts
@pytest.mark.parametrize("shape", [(T, D), (3, 4, D), (D,), (0, D)])
def test_the_output_is_shaped_like_the_input(router, experts, shape):
    x = torch.randn(shape, requires_grad=True)
    y = build(router, experts, losses={"load_balance": 0.1, "z": 0.1})(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.isfinite().all()


@token_wise
@experts
def test_permuting_the_tokens_permutes_the_output(router, experts):
    layer, x, order = build(router, experts).eval(), torch.randn(T, D), torch.randperm(T)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], atol=1e-6, rtol=1e-5)


@routers
@each_once
def test_a_seed_gives_the_same_bits_again(router, experts, policy):
    x, results = torch.randn(T, D, requires_grad=True), []
    weight = torch.randn(T, D)
    layer = build(router, experts, policy)
    for _ in range(2):
        y = seeded(layer, x)
        results.append({"y": y.detach(), **gradients(layer, x, y, weight)})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@routers
@each_once
@pytest.mark.parametrize(("tokens", "num", "k"), [(1, E, 2), (T, 1, 1), (T, E, E), (1, 1, 1)])
def test_extremes(router, experts, policy, tokens, num, k):
    """One token, one expert, every expert chosen."""
    layer = build(router, experts, policy, num=num, k=k, losses={"load_balance": 0.1, "importance": 0.1, "load": 0.1})
    x = torch.randn(tokens, D, requires_grad=True)
    y = seeded(layer, x)
    torch.testing.assert_close(y, moe_loop(layer, x, seeded(layer.router, x)), atol=1e-5, rtol=1e-4)
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@token_wise
@each_once
def test_all_tokens_to_one_expert(router, experts, policy):
    layer, x = build(router, experts, policy), torch.randn(1, D).expand(T, D).contiguous().requires_grad_()
    with mx.record(layer) as log:
        y = seeded(layer.eval(), x)
    routing = log[""][0].routing
    assert set(routing.route_counts().tolist()) <= {0, T}
    assert routing.route_counts().sum() == (routing.expert_N >= 0).sum() > 0
    torch.testing.assert_close(y, moe_loop(layer, x, layer.router(x)), atol=1e-5, rtol=1e-4)
    y.sum().backward()
    assert x.grad.isfinite().all()


@token_wise
@experts
def test_a_nan_poisons_its_own_token_only(router, experts):
    layer, x = build(router, experts).eval(), torch.randn(T, D)
    clean = layer(x)
    for token in (0, 7, T - 1):
        bad = x.clone()
        bad[token] = torch.nan
        y = layer(bad)
        others = [t for t in range(T) if t != token]
        torch.testing.assert_close(y[others], clean[others], atol=1e-6, rtol=1e-5)
        assert y[token].isnan().all()


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_routers_of_all_tokens_do_mix_them(router):
    layer, x = build(router).eval(), torch.randn(T, D)
    other = x.clone()
    other[0] *= -2
    assert not torch.allclose(layer(x)[1:], layer(other)[1:])


@routers
@policies
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_stands_in_the_padding_changes_nothing_and_gets_zeros(router, policy, training):
    layer, mask = build(router, policy=policy).train(training), torch.rand(T) < 0.6
    x, weight, results = torch.randn(T, D), torch.randn(T, D), []
    for padding in (torch.randn(T, D), 5 * torch.randn(T, D)):
        padded = x.where(mask.unsqueeze(-1), padding).requires_grad_()
        y = seeded(layer, padded, mask=mask)
        assert not y[~mask].any()
        results.append({"y": y.detach(), **gradients(layer, padded, y, weight)})
    assert not results[0]["x"][~mask].any()
    assert_equal_gradients(*results)


@routers
@each_once
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_stays_close_to_fp32(router, experts, policy, dtype):
    exact = build(router, experts, policy)
    rounded = copy.deepcopy(exact).to(dtype)
    with torch.no_grad():
        for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
            a.copy_(b)  # both start from the rounded numbers, so that both route alike
    x = torch.randn(T, D).to(dtype)
    y = seeded(rounded, x)
    assert y.dtype is dtype
    torch.testing.assert_close(y.float(), seeded(exact, x.float()), rtol=0.05, atol=0.02)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rounded.parameters())


@token_wise
@experts
def test_micro_batches_accumulate_to_the_whole(router, experts):
    layer, x = build(router, experts).eval(), torch.randn(12, D)
    layer(x).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    for part in x.split(4):
        layer(part).square().sum().backward()
    for name, p in layer.named_parameters():
        if name in whole:
            torch.testing.assert_close(p.grad, whole[name], atol=1e-5, rtol=1e-4, msg=name)


@token_wise
def test_losses_that_are_means_over_tokens_accumulate_too(router):
    layer, x = build(router, losses={"z": 0.1}), torch.randn(12, D)
    layer.router.eval()  # no noise, jitter or balance over the batch; the losses still act

    def run(parts):
        layer.zero_grad()
        for part in parts:
            with mx.collect_losses(layer) as losses:
                task = layer(part).square().mean()
            ((task + losses.total()) / len(parts)).backward()
        return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}

    assert_equal_gradients(run(x.split(4)), run([x]))


@pytest.mark.parametrize("router", [name for name, case in ROUTERS.items() if not case.surrogate])
@each_once
def test_gradients_are_those_of_finite_differences_in_float64(router, experts, policy):
    losses = {"load_balance": 0.1, "z": 0.1, "importance": 0.1, "load": 0.1}
    layer = build(router, experts, policy, losses=losses).double()
    names = dict(layer.named_parameters())

    def run(x, *parameters):
        with mx.collect_losses(layer) as collected:
            y = seeded(torch.func.functional_call, layer, dict(zip(names, parameters, strict=True)), (x,))
        assert y.dtype is collected.total().dtype is torch.float64
        return y, collected.total()

    x = torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *names.values()), fast_mode=True)


class Copies(nn.Module):
    """Experts that give back their rows: what is left of the layer must not wait for a device."""

    num_experts = E

    def forward(self, rows):
        return rows.scale(rows.gather())


@routers
@pytest.mark.parametrize(("policy", "training"), [*((policy, True) for policy in POLICIES), ("dropless", False)])
def test_nothing_but_the_experts_waits_for_a_device(router, policy, training, monkeypatch):
    """A fake tensor has no values: looking at one, or at a shape made of some, is an error."""
    for module in (assignment, overflow):
        monkeypatch.setattr(module, "may_look", lambda x: False)  # as anywhere but on a CPU
    losses = {"load_balance": 0.1, "z": 0.1, "importance": 0.1, "load": 0.1}
    with FakeTensorMode():
        layer = build(router, policy=policy, losses=losses).train(training)
        layer.experts = Copies()
        x = torch.empty(2, T, D, requires_grad=True)
        for known in ({}, {"mask": torch.empty(2, T, dtype=torch.bool), "priority": torch.empty(2, T)}):
            layer(x, **known).sum().backward()
            assert x.grad.shape == x.shape


@routers
@each_once
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_changes_no_gradient_and_is_counted_once(router, experts, policy, use_reentrant):
    layer = build(router, experts, policy, losses={"load_balance": 0.1, "z": 0.1})
    x = torch.randn(T, D, requires_grad=True)
    seeded(lambda: layer(x).square().sum().backward())
    expected = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    expected_x = x.grad.clone()
    layer.zero_grad()
    x.grad = None
    if isinstance(layer.router, SigmoidBias):
        layer.router.pending_counts.zero_()
    with mx.record(layer) as log:
        seeded(lambda: checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward())
    torch.testing.assert_close(x.grad, expected_x)
    for name, p in layer.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], msg=name)
    assert len(log[""]) == 1
    if isinstance(layer.router, SigmoidBias):
        assert torch.equal(layer.router.pending_counts, log[""][0].counts_E())
