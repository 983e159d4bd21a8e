"""How the kernels for GPUs behave beside giving the right values: what they keep, skip, refuse and repeat."""

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.kernels import KERNELS, reference, use
from tests.kernels.cases import EVEN, NAMES, Operands, error, make_index

kernels = pytest.mark.parametrize("name", ["grouped_mm", "triton"])


@kernels
def test_only_x_z_and_the_weights_are_kept_for_the_backward_pass(name):
    index = make_index(EVEN[:12], num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True, dim=24, hidden=5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        operands.run(KERNELS[name], index)
    known = [*operands.leaves().values(), index.token_N, index.counts_E, index.slot_TK]
    others = [tensor for tensor in kept if tensor.data_ptr() not in {tensor.data_ptr() for tensor in known}]
    assert [tensor.shape for tensor in others] == [(24, 10)]  # z: (N, 2F), and nothing of size N x D


@kernels
@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.usefixtures("poison")
def test_only_wanted_gradients_come_out(name, wanted):
    index = make_index(EVEN[:4], num_experts=4)
    operands = Operands.random(index, activation="gelu", bias=True)
    full = operands.results(reference.grouped_mlp, index, torch.ones(8, 5))
    for leaf in NAMES:
        getattr(operands, leaf).requires_grad_(leaf == wanted)
    operands.run(KERNELS[name], index).sum().backward()  # a gradient of expanded ones, which is not contiguous
    assert error(getattr(operands, wanted).grad, full[wanted]) < 1e-5
    assert all(getattr(operands, leaf).grad is None for leaf in NAMES if leaf != wanted)


@kernels
def test_without_gradients_nothing_is_kept_and_the_result_is_the_same(name):
    index = make_index(EVEN[:12], num_experts=4)
    operands = Operands.random(index, activation="silu", bias=True)
    with_graph = operands.run(KERNELS[name], index)
    with torch.no_grad():
        without = operands.run(KERNELS[name], index)
    assert torch.equal(with_graph, without)
    assert without.grad_fn is None


@kernels
def test_a_nan_in_one_token_stays_in_its_rows(name):
    index = make_index(EVEN[:12], num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    with torch.no_grad():
        operands.x[0] = torch.nan  # token 0 is also what masked rows read
    y_ND = operands.run(KERNELS[name], index)
    assert torch.equal(y_ND.isnan().all(1), index.token_N == 0)
    assert torch.equal(y_ND.isnan().any(1), index.token_N == 0)
    y_ND.sum().backward()
    for leaf in ("up", "down", "up_bias"):  # the gradients of experts that never saw it stay clean
        assert getattr(operands, leaf).grad.flatten(1).isnan().any(1).tolist() == [True, True, False, False]


@kernels
def test_runs_repeat_to_the_last_bit_and_leave_inputs_alone(name):
    index = make_index(EVEN[:12], num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    kept = {leaf: value.detach().clone() for leaf, value in operands.leaves().items()}
    dy_ND = torch.randn(24, 5)
    first, second = (operands.results(KERNELS[name], index, dy_ND) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(value, kept[leaf]) for leaf, value in operands.leaves().items())


@kernels
def test_double_backward_is_refused_and_not_wrong(name):
    index = make_index(EVEN[:5], num_experts=4)
    operands = Operands.random(index, activation="silu", bias=False)
    (dx,) = torch.autograd.grad(operands.run(KERNELS[name], index).square().sum(), operands.x, create_graph=True)
    with pytest.raises(UserError, match="expected first derivatives of the experts"):
        dx.sum().backward()


@kernels
def test_other_dtypes_are_refused(name):
    index = make_index([[0]], num_experts=1)
    operands = Operands.random(index, activation="relu", bias=False).cast(torch.float64)
    with pytest.raises(
        UserError, match=f"expected bfloat16, float16 or float32 for the {name} kernel, got torch.float64"
    ):
        operands.run(KERNELS[name], index)


@kernels
def test_a_whole_layer_with_dropped_tokens_gives_and_learns_the_same(name):
    torch.manual_seed(1)
    config = mx.MoEConfig(dim=8, hidden=12, num_experts=3, k=2, capacity_factor=0.7, bias=True)
    layer, x = config.build(), torch.randn(10, 8, requires_grad=True)

    def gradients():
        return torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])

    with use("reference"):
        expected = gradients()
    with use(name):
        got = gradients()
    assert max(error(a, b) for a, b in zip(got, expected, strict=True)) < 1e-5
