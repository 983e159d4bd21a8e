"""The CPU kernel against the loop reference: output, every gradient, all layouts, empty experts, poisoned memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura import UserError
from mixtura.kernels import cpu, reference
from mixtura.kernels import layout as layout_module
from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.layout import Partition
from tests.kernels.cases import Operands, error, make_index

EVEN = [[t % 4, (t + 1) % 4] for t in range(24)]
INDICES = {
    "one choice": ([[(5 * t) % 4] for t in range(20)], True),
    "two choices": (EVEN, True),
    "three choices": ([[t % 4, (t + 1) % 4, (t + 3) % 4] for t in range(10)], True),
    "first expert empty": ([[1 + t % 3] for t in range(9)], True),
    "middle expert empty": ([[(0, 1, 3)[t % 3]] for t in range(9)], True),
    "last expert empty": ([[t % 3] for t in range(9)], True),
    "all but one empty": ([[2]] * 7, True),
    "no rows at all": ([[-1, -1]] * 5, True),
    "some dropped": ([[t % 4, -1 if t % 3 else (t + 1) % 4] for t in range(12)], True),
    "first choice dropped": ([[-1, t % 4] for t in range(12)], True),
    "different numbers of choices": ([[t % 4, -1 if t % 3 else (t + 1) % 4] for t in range(12)], False),
    "tokens without rows, no slots": ([[-1], [0], [-1], [3], [3]], False),
    "one token": ([[3, 1]], True),
    "no tokens": ([], True),
    "very uneven": ([[0]] * 40 + [[1], [2], [3]], True),
}
indices = pytest.mark.parametrize(("choices", "regular"), INDICES.values(), ids=list(INDICES))


def alone(counts, *, macs_per_row):
    return Partition(list(range(len(counts))), [1] * len(counts), list(counts))


def together(counts, *, macs_per_row):
    return Partition(list(range(len(counts))), [len(counts)], [max(counts) and max(counts) + 3])


def in_pairs(counts, *, macs_per_row):
    order = sorted(range(len(counts)), key=counts.__getitem__)
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    return Partition(order, [len(pair) for pair in pairs], [max(counts[e] for e in pair) for pair in pairs])


LAYOUTS = {"alone": alone, "together": together, "in pairs": in_pairs, "chosen": layout_module.partition}


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """Force a grouping of the experts; "chosen" leaves it to the kernel."""
    monkeypatch.setattr(layout_module, "partition", LAYOUTS[request.param])
    return request.param


def compare(operands, index):
    dy_ND = torch.randn(index.token_N.shape[0], operands.x.shape[1])
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(cpu.grouped_mlp, index, dy_ND)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert got[name].dtype == value.dtype
        assert error(got[name], value) < 1e-5, name


@indices
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("layout", "poison")
def test_every_index(choices, regular, bias):
    index = make_index(choices, num_experts=4, regular=regular)
    compare(Operands.random(index, activation="swiglu", bias=bias), index)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("layout", "poison")
def test_every_activation(activation, bias):
    index = make_index(EVEN[:13], num_experts=5)  # uneven, and expert 4 empty
    compare(Operands.random(index, activation=activation, bias=bias), index)


@indices
@pytest.mark.usefixtures("layout", "poison")
def test_dropout_inside_the_experts(choices, regular):
    index = make_index(choices, num_experts=4, regular=regular)
    compare(Operands.random(index, activation="geglu", bias=True, dropout=0.4), index)


@indices
@pytest.mark.usefixtures("layout", "poison")
def test_the_tail_is_zeros(choices, regular):
    index = make_index(choices, num_experts=4, regular=regular)
    y_ND = Operands.random(index, activation="swiglu", bias=True).run(cpu.grouped_mlp, index)
    assert y_ND.shape[0] == index.token_N.shape[0]
    assert not y_ND[int(index.counts_E.sum()) :].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("layout", "poison")
def test_bf16_is_not_worse_than_the_reference_in_bf16(activation, bias):
    index = make_index(EVEN * 20, num_experts=4)
    exact = Operands.random(index, activation=activation, bias=bias, dim=32, hidden=48)
    rounded = exact.cast(torch.bfloat16)
    dy_ND = torch.randn(index.token_N.shape[0], 32).bfloat16()
    # The truth takes the rounded operands in full precision, so that only the kernels' own rounding is compared.
    truth = rounded.cast(torch.float32).results(reference.grouped_mlp, index, dy_ND.float())
    loop = rounded.results(reference.grouped_mlp, index, dy_ND)
    got = rounded.results(cpu.grouped_mlp, index, dy_ND)
    for name, value in truth.items():
        assert got[name].dtype == loop[name].dtype
        assert error(got[name], value) <= 2 * error(loop[name], value) + 1e-6, name
        assert error(got[name], value) < 2e-2, name


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.usefixtures("layout")
def test_gradcheck_in_float64(activation):
    index = make_index([[0, 2], [2, -1], [2, 0]], num_experts=3)
    operands = Operands.random(index, activation=activation, bias=True, dim=2, hidden=2).cast(torch.float64)
    operands.weight = operands.weight.detach().double().requires_grad_()
    leaves = operands.leaves()

    def run(*values):
        changed = Operands(**{**vars(operands), **dict(zip(leaves, values, strict=True))})
        return changed.run(cpu.grouped_mlp, index)

    torch.autograd.gradcheck(run, tuple(leaves.values()))


@given(st.data())
@settings(max_examples=40)
def test_any_choices(data):
    E, K = data.draw(st.integers(1, 5), label="E"), data.draw(st.integers(1, 3), label="K")
    row = st.lists(st.integers(-1, E - 1), min_size=K, max_size=K)
    choices = data.draw(st.lists(row, min_size=1, max_size=12), label="choices")
    index = make_index(choices, num_experts=E, regular=data.draw(st.booleans(), label="regular"))
    operands = Operands.random(index, activation="geglu", bias=True)
    for force in LAYOUTS.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layout_module, "partition", force)
            compare(operands, index)


@pytest.mark.usefixtures("layout")
def test_only_x_z_and_the_weights_are_kept_for_the_backward_pass():
    index = make_index([[t % 4, (t + 1) % 4] for t in range(64)], num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True, dim=24, hidden=5)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y_ND = operands.run(cpu.grouped_mlp, index)
    leaves = [leaf.data_ptr() for leaf in operands.leaves().values()]
    others = [tensor for tensor in kept if tensor.data_ptr() not in leaves]
    assert [tensor.shape[1:] for tensor in others] == [(10,)]  # z: (rows, 2F), and no (rows, D)
    assert len(kept) == len(leaves) + 1
    assert not any(tensor.data_ptr() == y_ND.data_ptr() for tensor in kept)


NAMES = ("x", "weight", "up", "down", "up_bias", "down_bias")


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.usefixtures("layout")
def test_only_wanted_gradients_are_computed(wanted, monkeypatch):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="gelu", bias=True)
    full = operands.results(reference.grouped_mlp, index, torch.ones(48, 5))
    for name in NAMES:
        getattr(operands, name).requires_grad_(name == wanted)
    y_ND = operands.run(cpu.grouped_mlp, index)
    calls = count_calls(monkeypatch)
    y_ND.sum().backward()
    assert error(getattr(operands, wanted).grad, full[wanted]) < 1e-5
    assert all(getattr(operands, name).grad is None for name in NAMES if name != wanted)
    assert calls == {
        "sum_to_tokens": int(wanted == "x"),
        "weight_grad": int(wanted in ("up", "down")),
        "bias_grad": int(wanted in ("up_bias", "down_bias")),
    }


def count_calls(monkeypatch):
    calls = dict.fromkeys(("sum_to_tokens", "weight_grad", "bias_grad"), 0)

    def counted(name, original):
        def spy(*args):
            calls[name] += 1
            return original(*args)

        return spy

    for name in calls:
        monkeypatch.setattr(layout_module.Layout, name, counted(name, getattr(layout_module.Layout, name)))
    return calls


@pytest.mark.usefixtures("layout")
def test_without_gradients_nothing_is_kept_and_the_result_is_the_same():
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="silu", bias=True)
    with_graph = operands.run(cpu.grouped_mlp, index)
    with torch.no_grad():
        without = operands.run(cpu.grouped_mlp, index)
    assert torch.equal(with_graph, without)
    assert without.grad_fn is None


@pytest.mark.usefixtures("layout")
def test_inputs_are_left_alone_and_backward_can_run_twice():
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    kept = {name: leaf.detach().clone() for name, leaf in operands.leaves().items()}
    y_ND = operands.run(cpu.grouped_mlp, index)
    leaves = list(operands.leaves().values())
    first = torch.autograd.grad(y_ND.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y_ND.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(leaf, kept[name]) for name, leaf in operands.leaves().items())


@pytest.mark.usefixtures("layout")
def test_a_nan_in_one_token_stays_in_its_rows():
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    with torch.no_grad():
        operands.x[0] = torch.nan  # token 0 is also what fills the padding
    y_ND = operands.run(cpu.grouped_mlp, index)
    assert torch.equal(y_ND.isnan().all(1), index.token_N == 0)
    assert torch.equal(y_ND.isnan().any(1), index.token_N == 0)
    y_ND.sum().backward()
    for name in ("up", "down", "up_bias"):  # the gradients of experts that never saw it stay clean
        assert getattr(operands, name).grad.flatten(1).isnan().any(1).tolist() == [True, True, False, False]


@pytest.mark.usefixtures("layout")
def test_runs_repeat_to_the_last_bit():
    index = make_index(EVEN * 10, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True)
    dy_ND = torch.randn(480, 5)
    first, second = (operands.results(cpu.grouped_mlp, index, dy_ND) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_double_backward_is_refused_and_not_wrong():
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="silu", bias=False)
    (dx,) = torch.autograd.grad(operands.run(cpu.grouped_mlp, index).square().sum(), operands.x, create_graph=True)
    with pytest.raises(UserError, match="expected first derivatives of the experts"):
        dx.sum().backward()
