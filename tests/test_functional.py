"""torch.func, copies, state dicts, the meta device and what a layer says of itself."""

import copy
import io
import pickle
from dataclasses import replace
from inspect import signature

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import mixtura as mx
from mixtura.dispatch import dispatch
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.routers import ROUTERS

GPT_CONFIG = GPTConfig(vocab_size=31, context=16, dim=16, heads=2, hidden=16, num_experts=4)


def make(**options):
    sizes = {"dim": 8, "hidden": 16, "num_experts": 4, "losses": {"load_balance": 0.1, "z": 0.1}}
    return mx.MoEConfig(**{**sizes, **options}).build()


def with_temperature(router, value):
    """The option, of a router that has it."""
    return {"temperature": value} if "options" in signature(ROUTERS[router]).parameters else {}


def loss_of(layer):
    """A function of parameters, buffers (a router that counts changes them) and input."""
    return lambda parameters, buffers, x: functional_call(layer, (parameters, buffers), (x,)).square().sum()


def gradients(layer, x):
    """By plain autograd, attached losses included."""
    names = dict(layer.named_parameters())
    return dict(zip(names, torch.autograd.grad(layer(x).square().sum(), names.values()), strict=True))


def dispatched(layer, x):
    """What the layer's experts get, in float64: what routers give is too coarse for finite differences."""
    rows = dispatch(layer.router(x.detach()), x, capacity=2)
    return replace(rows, weight_N=rows.weight_N.detach().double())


OPTIONS = {
    "topk": {},
    "sigmoid_bias drop": {"router": "sigmoid_bias", "capacity_factor": 0.8},
    "switch shared": {"router": "switch", "shared_hidden": 5, "shared_gate": "sigmoid"},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@options
def test_functional_gradients_are_autograds(options):
    layer, x = make(**options), torch.randn(17, 8)
    layer.train(not hasattr(layer.router, "pending_counts"))  # a router that counts does so in training only
    expected = gradients(layer, x)
    got = grad(loss_of(layer))(dict(layer.named_parameters()), dict(layer.named_buffers()), x)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


@options
def test_gradients_of_each_sample(options):
    layer, x = make(**options), torch.randn(3, 17, 8)
    layer.train(not hasattr(layer.router, "pending_counts"))  # a router that counts does so in training only
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())
    got = vmap(grad(loss_of(layer)), in_dims=(None, None, 0))(parameters, buffers, x)
    each = [gradients(layer, sample) for sample in x]
    for name, value in got.items():
        torch.testing.assert_close(value, torch.stack([sample[name] for sample in each]), msg=name)


def test_an_ensemble_by_vmap():
    layers, x = [make() for _ in range(3)], torch.randn(17, 8)
    parameters, buffers = stack_module_state(layers)

    def run(parameters):
        return vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)

    torch.testing.assert_close(run(parameters), torch.stack([layer(x) for layer in layers]))
    got = grad(lambda parameters: run(parameters).square().sum())(parameters)
    each = [gradients(layer, x) for layer in layers]
    for name, value in got.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]), msg=name)


@pytest.mark.parametrize("task", [torch.sum, lambda y: y.square().sum()], ids=["linear", "square"])
def test_a_second_derivative_is_refused_in_one_clear_line(task):
    layer, x = make(), torch.randn(5, 8, requires_grad=True)
    (first,) = torch.autograd.grad(task(layer(x)), x, create_graph=True)
    with pytest.raises(mx.UserError, match="expected first derivatives of the experts"):
        first.sum().backward()
    with pytest.raises(mx.UserError, match="expected first derivatives of the experts"):
        grad(lambda x: grad(lambda x: task(layer(x)))(x).square().sum())(x.detach())


def test_the_reference_has_a_second_derivative():
    layer, x = make(losses={}, capacity_factor=0.8).double(), torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    rows = dispatched(layer, x)
    with mx.kernels.use("reference"):
        assert torch.autograd.gradgradcheck(lambda x: rows.combine(layer.experts(replace(rows, x_TD=x))), x)


@pytest.mark.parametrize("router", ROUTERS)
def test_copies_pickles_and_state_dicts_compute_the_same(router):
    layer, x = make(router=router, router_options=with_temperature(router, 0.7)).eval(), torch.randn(9, 8)
    known = {"context": torch.arange(9)} if layer.router.needs_context else {}
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    restored = make(router=router, router_options=with_temperature(router, 1.0)).eval()
    restored.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), restored):
        assert not {id(p) for p in other.parameters()} & {id(p) for p in layer.parameters()}
        results = []
        for each in (other, layer):
            torch.manual_seed(0)  # one router draws anew in every forward
            results.append(each(x, **known))
        assert torch.equal(*results)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.usefixtures("poison")
def test_a_layer_from_the_meta_device(router):
    with torch.device("meta"):
        layer = make(router=router, router_options=with_temperature(router, 0.7), bias=True, shared_hidden=5)
    layer.to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if with_temperature(router, 0.7):
        assert layer.router.temperature == torch.tensor(0.7)
    state = layer.state_dict()
    for name, value in (
        make(router=router, router_options=with_temperature(router, 0.7), bias=True, shared_hidden=5)
        .state_dict()
        .items()
    ):
        assert state[name].isfinite().all(), name
        assert state[name].dtype == value.dtype
        if value.is_floating_point() and value.numel() >= 32:
            torch.testing.assert_close(state[name].std(), value.std(), rtol=0.5, atol=0)
    known = {"context": torch.arange(9)} if layer.router.needs_context else {}
    assert layer(torch.randn(9, 8), **known).isfinite().all()


@pytest.mark.usefixtures("poison")
def test_a_model_from_the_meta_device():
    with torch.device("meta"):
        model = GPT(GPT_CONFIG)
    model.to_empty(device="cpu")
    other = GPT(GPT_CONFIG)
    for each in (model, other):
        torch.manual_seed(3)
        each.reset_parameters()
    ids = torch.randint(31, (2, 9))
    assert torch.equal(model(ids), other(ids))
    assert model.head.weight is model.embedding.weight


def test_every_part_says_what_it_is():
    layer = mx.MoE(
        router=mx.routers.SigmoidBias(8, num_experts=4, k=2),
        experts=mx.GroupedMLP(num_experts=4, dim=8, hidden=16, bias=True, dropout=0.1),
        capacity_factor=1.25,
        policy="priority",
        losses={"z": 1e-3},
        shared=mx.MLP(dim=8, hidden=5),
    )
    text = repr(layer)
    for part in (
        "capacity=Capacity(factor=1.25), policy=priority, pooling=sum, losses={'z': 0.001}",
        "SigmoidBias(dim=8, num_experts=4, k=2)",
        "num_experts=4, dim=8, hidden=16, activation=swiglu, bias=True, dropout=0.1",
        "(shared): MLP(",
    ):
        assert part in text
    assert "ModuleExperts" in repr(mx.ModuleExperts([nn.Linear(8, 8)]))
