"""The pair of ops: what they compute, what they tell a tracer, and that every kernel is served."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mixtura import UserError, kernels
from mixtura.kernels import ops, reference
from mixtura.kernels.ops import Wanted
from tests.kernels.cases import Operands, error, make_index

INDICES = {
    "uneven": make_index([[0, 2], [2, 1], [2, 0], [2, 1]], num_experts=4),
    "dropped": make_index([[0, -1], [-1, 1], [2, 0]], num_experts=3),
    "no slots": make_index([[0, -1], [-1, 1], [2, 0]], num_experts=3, regular=False),
    "no tokens": make_index([], num_experts=3),
}
indices = pytest.mark.parametrize("index", INDICES.values(), ids=list(INDICES))
every_kernel = pytest.mark.parametrize("name", [*kernels.KERNELS, "chosen"])


def called(name):
    """A kernel that goes through the ops."""
    return lambda x_TD, weight_N, index, *, experts, keep_NF: ops.call(
        name, x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF
    )


def arguments(index, *, bias=True, name="cpu", keep_z=True):
    """What the forward op takes."""
    given = Operands.random(index, activation="swiglu", bias=bias, dropout=0.3)
    tensors = [given.x, given.weight, given.up, given.down, given.up_bias, given.down_bias, given.keep]
    tensors = [tensor if tensor is None else tensor.detach() for tensor in tensors]
    return (*tensors, index.token_N, index.counts_E, index.slot_TK, index.dropless, "swiglu", name, keep_z)


@every_kernel
@indices
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.usefixtures("poison")
def test_every_kernel_through_the_ops_is_the_reference(name, index, dropout):
    operands = Operands.random(index, activation="geglu", bias=True, dropout=dropout)
    dy_ND = torch.randn(index.token_N.shape[0], 5)
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    for key, value in operands.results(called(name), index, dy_ND).items():
        assert error(value, expected[key]) < 1e-5, key


@indices
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_only_wanted_gradients_are_computed(index, name):
    *inputs, keep_z = arguments(index, name=name)
    y_ND, z = torch.ops.mixtura.grouped_mlp(*inputs, keep_z)
    *tensors, dropless, activation, kernel = inputs
    every = torch.ops.mixtura.grouped_mlp_backward(
        torch.ones_like(y_ND), *tensors, z, dropless, activation, kernel, [True] * 6
    )
    for place in range(6):
        wanted = [place == other for other in range(6)]
        (one,) = torch.ops.mixtura.grouped_mlp_backward(
            torch.ones_like(y_ND), *tensors, z, dropless, activation, kernel, wanted
        )
        torch.testing.assert_close(one, every[place])


@indices
def test_kernels_agree_on_z_so_that_one_can_finish_what_another_began(index):
    z = [torch.ops.mixtura.grouped_mlp(*arguments_)[1] for arguments_ in seeded_arguments(index)]
    kept = int(index.counts_E.sum())
    for other in z[1:]:
        torch.testing.assert_close(other[:kept], z[0][:kept])


def seeded_arguments(index):
    for name in kernels.KERNELS:
        torch.manual_seed(1)
        yield arguments(index, name=name)


@indices
@pytest.mark.parametrize("keep_z", [True, False])
def test_the_shapes_told_are_the_shapes_given(index, keep_z):
    real = arguments(index, keep_z=keep_z)
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = torch.ops.mixtura.grouped_mlp(*real)
    for fake, tensor in zip(told, torch.ops.mixtura.grouped_mlp(*real), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (tensor.shape, tensor.dtype, tensor.stride())


@indices
@pytest.mark.parametrize("bias", [True, False])
def test_torch_finds_nothing_wrong_with_the_ops(index, bias):
    inputs = arguments(index, bias=bias)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(torch.ops.mixtura.grouped_mlp.default, inputs, test_utils=checks).values()) == {
        "SUCCESS"
    }
    y_ND, z = torch.ops.mixtura.grouped_mlp(*inputs)
    wanted = [True] * 4 + [bias] * 2
    backward = (torch.randn_like(y_ND), *inputs[:10], z, *inputs[10:13], wanted)
    results = torch.library.opcheck(torch.ops.mixtura.grouped_mlp_backward.default, backward, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def test_the_kernel_is_chosen_when_the_op_runs(monkeypatch):
    seen = []

    def spy(*given, **values):
        seen.append("reference")
        return reference.grouped_mlp(*given, **values)

    monkeypatch.setitem(kernels.KERNELS, "reference", spy)
    monkeypatch.delitem(ops.PASSES, "reference")  # as a kernel that registered no passes of its own
    index = INDICES["uneven"]
    operands = Operands.random(index, activation="relu", bias=False)
    run = torch.compile(called("chosen"), backend="eager", fullgraph=True)
    first = operands.run(run, index)
    assert not seen
    with kernels.use("reference"):
        second = operands.run(run, index)
    torch.testing.assert_close(first, second)
    second.sum().backward()  # by the cpu kernel, from the z of the other
    assert seen == ["reference"]
    expected = torch.autograd.grad(operands.run(reference.grouped_mlp, index).sum(), operands.up)[0]
    torch.testing.assert_close(operands.up.grad, expected)


def test_meta_tensors_give_shapes():
    index = INDICES["uneven"]
    operands = Operands.random(index, activation="relu", bias=False)
    for name in ("x", "weight", "up", "down"):
        setattr(operands, name, getattr(operands, name).to("meta"))
    index = index._replace(token_N=index.token_N.to("meta"), counts_E=index.counts_E.to("meta"), slot_TK=None)
    y_ND = operands.run(kernels.grouped_mlp, index)
    assert (y_ND.device.type, y_ND.shape) == ("meta", (8, 5))


def test_a_second_derivative_is_refused():
    index = INDICES["uneven"]
    operands = Operands.random(index, activation="relu", bias=False)
    for kernel in (called("cpu"), kernels.grouped_mlp):
        (grad,) = torch.autograd.grad(operands.run(kernel, index).square().sum(), operands.x, create_graph=True)
        with pytest.raises(UserError, match="expected first derivatives of the experts"):
            grad.sum().backward()


def test_without_a_gradient_nothing_is_kept():
    index = INDICES["uneven"]
    assert torch.ops.mixtura.grouped_mlp(*arguments(index, keep_z=False))[1].shape == (0, 14)
    assert Wanted._fields == ops.Gradients._fields
