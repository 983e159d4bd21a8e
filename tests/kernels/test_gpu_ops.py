"""Kernels as custom ops: what torch.compile sees of them, and that the shapes it is told are the real ones."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from mixtura import kernels
from mixtura.kernels import grouped_mm, reference, triton
from mixtura.kernels.ops import PASSES
from tests.kernels.cases import EVEN, Operands, error, make_index

MODULES = {"grouped_mm": grouped_mm, "triton": triton}
# Dynamo instantiates a function's class where it traces one.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
modules = pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))


@modules
@compiles
def test_torch_compile_keeps_one_graph_and_does_not_compile_again_for_other_counts(module):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    @torch.compile(backend=backend, fullgraph=True)
    def compiled(x_TD, weight_N, index, experts):
        return module.grouped_mlp(x_TD * 2, weight_N, index, experts=experts).sin()

    def plain(x_TD, weight_N, index, *, experts, **_):
        return reference.grouped_mlp(x_TD * 2, weight_N, index, experts=experts).sin()

    for choices in (EVEN[:4], [[0, 1]] * 4, [[3, 1]] * 4):
        index = make_index(choices, num_experts=4)
        operands = Operands.random(index, activation="swiglu", bias=True)
        dy_ND = torch.randn(8, 5)
        expected = operands.results(plain, index, dy_ND)
        got = operands.results(lambda *args, experts, **_: compiled(*args, experts), index, dy_ND)
        assert max(error(got[name], value) for name, value in expected.items()) < 1e-4
    assert len(graphs) == 1


@modules
def test_schema_shapes_and_autograd_are_registered_as_torch_wants_them(module):
    index = make_index([[0, 1], [2, 0]], num_experts=4)  # no tail: what z holds there is nobody's
    operands = Operands.random(index, activation="geglu", bias=module is grouped_mm)
    tensors = (operands.x, operands.weight, operands.up, operands.down, operands.up_bias, operands.down_bias)
    indices = (index.token_N, index.counts_E, index.slot_TK)
    op, kernel = torch.ops.mixtura.grouped_mlp.default, module.__name__.rpartition(".")[2]
    torch.library.opcheck(op, (*tensors, None, *indices, index.dropless, "geglu", kernel, True))


@pytest.mark.parametrize("name", MODULES)
@compiles
def test_a_compiled_graph_runs_the_kernel_that_is_in_use_when_it_runs(name, monkeypatch):
    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x_TD, weight_N, index, experts):
        return kernels.grouped_mlp(x_TD, weight_N, index, experts=experts)

    index = make_index([[0], [1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=False)
    calls, passes = [], PASSES[name]

    def spy(*args, **values):
        calls.append(name)
        return passes.forward(*args, **values)

    monkeypatch.setitem(PASSES, name, passes._replace(forward=spy))
    expected = compiled(operands.x, operands.weight, index, operands.stacked())
    assert calls == []
    with kernels.use(name):
        got = compiled(operands.x, operands.weight, index, operands.stacked())
    assert calls == [name]
    torch.testing.assert_close(got, expected)


@modules
def test_an_unused_output_gives_no_gradient(module):
    index = make_index([[0], [1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=False)
    kept = operands.x * 1
    module.grouped_mlp(kept, operands.weight, index, experts=operands.stacked())
    kept.sum().backward()
    assert torch.equal(operands.x.grad, torch.ones(2, 5))
    assert operands.up.grad is None
