"""Every kernel against the loop reference: output, every gradient, empty experts, tails, poisoned memory.

The fixture `kernel` runs each test with every grouping of experts by `cpu`, and every set of instructions of `native`.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtura import UserError
from mixtura.kernels import reference
from mixtura.kernels.activations import ACTIVATIONS, WOVEN
from tests.kernels.cases import EVEN, INDICES, Operands, compare, error, make_index

indices = pytest.mark.parametrize(("choices", "regular"), INDICES.values(), ids=list(INDICES))


@indices
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("poison")
def test_every_index(kernel, choices, regular, bias):
    index = make_index(choices, num_experts=4, regular=regular)
    compare(kernel, Operands.random(index, activation="swiglu", bias=bias), index)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *WOVEN])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("poison")
def test_every_activation(kernel, activation, bias):
    index = make_index(EVEN[:13], num_experts=5)  # uneven, and expert 4 empty
    compare(kernel, Operands.random(index, activation=activation, bias=bias), index)


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "woven_clamped_swiglu"])
@pytest.mark.parametrize("turned", [["up"], ["down"], ["up", "down"]], ids=" and ".join)
@pytest.mark.parametrize("rows", [13, 150], ids=["few", "many"])
@pytest.mark.usefixtures("poison")
def test_matrices_that_lie_transposed_get_such_gradients(kernel, activation, turned, rows):
    index = make_index((EVEN * 7)[:rows], num_experts=5)  # expert 4 empty
    operands = Operands.random(index, activation=activation, bias=True, dim=37, hidden=42)
    for name in turned:
        setattr(operands, name, getattr(operands, name).detach().mT.contiguous().mT.requires_grad_())
    compare(kernel, operands, index)
    gradients = operands.results(kernel, index, torch.ones(2 * rows, 37))
    assert all(gradients[name].mT.is_contiguous() for name in turned)


@indices
@pytest.mark.usefixtures("poison")
def test_dropout_inside_the_experts(kernel, choices, regular):
    index = make_index(choices, num_experts=4, regular=regular)
    compare(kernel, Operands.random(index, activation="geglu", bias=True, dropout=0.4), index)


@indices
@pytest.mark.usefixtures("poison")
def test_the_tail_is_zeros(kernel, choices, regular):
    index = make_index(choices, num_experts=4, regular=regular)
    y_ND = Operands.random(index, activation="swiglu", bias=True).run(kernel, index)
    assert y_ND.shape[0] == index.token_N.shape[0]
    assert not y_ND[int(index.counts_E.sum()) :].any()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *WOVEN])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("poison")
def test_bf16_is_not_worse_than_the_reference_in_bf16(kernel, activation, bias):
    index = make_index(EVEN * 20, num_experts=4)
    exact = Operands.random(index, activation=activation, bias=bias, dim=32, hidden=48)
    rounded = exact.cast(torch.bfloat16)
    dy_ND = torch.randn(index.token_N.shape[0], 32).bfloat16()
    # The truth takes the rounded operands in full precision, so that only the kernels' own rounding is compared.
    truth = rounded.cast(torch.float32).results(reference.grouped_mlp, index, dy_ND.float())
    loop = rounded.results(reference.grouped_mlp, index, dy_ND)
    got = rounded.results(kernel, index, dy_ND)
    for name, value in truth.items():
        assert got[name].dtype == loop[name].dtype
        assert error(got[name], value) <= 2 * error(loop[name], value) + 1e-6, name
        # The clamps' derivative jumps at +-7, where bf16 is 0.03 wide: rows on the edge fall on either side.
        assert error(got[name], value) < (6e-2 if "clamped" in activation else 2e-2), name


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_choices(kernel, data):
    E, K = data.draw(st.integers(1, 5), label="E"), data.draw(st.integers(1, 3), label="K")
    row = st.lists(st.integers(-1, E - 1), min_size=K, max_size=K)
    choices = data.draw(st.lists(row, min_size=1, max_size=12), label="choices")
    index = make_index(choices, num_experts=E, regular=data.draw(st.booleans(), label="regular"))
    compare(kernel, Operands.random(index, activation="geglu", bias=True), index)


def test_only_x_z_and_the_weights_are_kept_for_the_backward_pass(kernel):
    index = make_index([[t % 4, (t + 1) % 4] for t in range(64)], num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True, dim=24, hidden=5)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y_ND = operands.run(kernel, index)
    leaves = [leaf.data_ptr() for leaf in operands.leaves().values()]
    others = [tensor for tensor in kept if tensor.data_ptr() not in leaves]
    assert [tensor.shape[1:] for tensor in others] == [(10,)]  # z: (rows, 2F), and no (rows, D)
    assert len(kept) == len(leaves) + 1
    assert not any(tensor.data_ptr() == y_ND.data_ptr() for tensor in kept)


NAMES = ("x", "weight", "up", "down", "up_bias", "down_bias")


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.usefixtures("poison")
def test_each_gradient_alone_is_what_it_is_among_others(kernel, wanted):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="gelu", bias=True)
    full = operands.results(reference.grouped_mlp, index, torch.ones(48, 5))
    for name in NAMES:
        getattr(operands, name).requires_grad_(name == wanted)
    operands.run(kernel, index).sum().backward()
    assert error(getattr(operands, wanted).grad, full[wanted]) < 1e-5
    assert all(getattr(operands, name).grad is None for name in NAMES if name != wanted)


def test_without_gradients_nothing_is_kept_and_the_result_is_the_same(kernel):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="silu", bias=True)
    with_graph = operands.run(kernel, index)
    with torch.no_grad():
        without = operands.run(kernel, index)
    assert torch.equal(with_graph, without)
    assert without.grad_fn is None


def test_inputs_are_left_alone_and_backward_can_run_twice(kernel):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    kept = {name: leaf.detach().clone() for name, leaf in operands.leaves().items()}
    y_ND = operands.run(kernel, index)
    leaves = list(operands.leaves().values())
    first = torch.autograd.grad(y_ND.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y_ND.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(leaf, kept[name]) for name, leaf in operands.leaves().items())


def test_a_nan_in_one_token_stays_in_its_rows(kernel):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    with torch.no_grad():
        operands.x[0] = torch.nan  # token 0 is also what fills the padding
    y_ND = operands.run(kernel, index)
    assert torch.equal(y_ND.isnan().all(1), index.token_N == 0)
    assert torch.equal(y_ND.isnan().any(1), index.token_N == 0)
    y_ND.sum().backward()
    for name in ("up", "down", "up_bias"):  # the gradients of experts that never saw it stay clean
        assert getattr(operands, name).grad.flatten(1).isnan().any(1).tolist() == [True, True, False, False]


def test_runs_repeat_to_the_last_bit(kernel):
    index = make_index(EVEN * 10, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    dy_ND = torch.randn(480, 5)
    first, second = (operands.results(kernel, index, dy_ND) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_double_backward_is_refused_and_not_wrong(kernel):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="silu", bias=False)
    (dx,) = torch.autograd.grad(operands.run(kernel, index).square().sum(), operands.x, create_graph=True)
    with pytest.raises(UserError, match="expected first derivatives of a kernel"):
        dx.sum().backward()
