import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.lora import LoRAExperts, add_lora, load_lora, merge_lora, save_lora
from tests.surgery.layers import build


def adapted(activation="swiglu", *, rank=3, alpha=6.0, **options):
    """A layer with adapters that have learned something, and its twin before that."""
    layer = build("topk", activation=activation)
    twin = copy.deepcopy(layer)
    add_lora(layer, rank=rank, alpha=alpha, **options)
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
            assert name.split(".")[-1] in ("up_a", "up_b", "down_a", "down_b", "a", "b")
    return layer, twin


def expand(layer, twin):
    """The twin with W + alpha / rank * B A in full."""
    full, scale = copy.deepcopy(twin), layer.experts.alpha / layer.experts.rank
    with torch.no_grad():
        full.experts.up_proj += scale * layer.experts.up_b @ layer.experts.up_a
        full.experts.down_proj += scale * layer.experts.down_b @ layer.experts.down_a
        full.router.weight.copy_(layer.router.weight)
    return full


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_output_and_gradients_are_those_of_the_expanded_weights(activation):
    layer, twin = adapted(activation)
    full, x = expand(layer, twin), torch.randn(30, 8)
    torch.testing.assert_close(layer(x), full(x), rtol=0, atol=1e-5)
    for each in (layer, full):
        each(x).square().sum().backward()
    experts, scale = layer.experts, 2.0
    for a, b, whole in (
        (experts.up_a, experts.up_b, full.experts.up_proj),
        (experts.down_a, experts.down_b, full.experts.down_proj),
    ):
        torch.testing.assert_close(b.grad, scale * whole.grad @ a.mT, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a.grad, scale * b.mT @ whole.grad, rtol=1e-3, atol=1e-3)
    adapter = layer.router.parametrizations["weight"][0]
    torch.testing.assert_close(adapter.b.grad, scale * full.router.weight.grad @ adapter.a.T, rtol=1e-3, atol=1e-3)
    assert experts.base.up_proj.grad is None


def test_nothing_changes_at_first_and_merging_is_the_same_function():
    layer, x = build("topk"), torch.randn(20, 8)
    before = layer(x)
    add_lora(layer, rank=2)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
    layer, twin = adapted()
    expected, full = layer(x), expand(layer, twin)
    merge_lora(layer)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    assert layer.state_dict().keys() == twin.state_dict().keys()
    torch.testing.assert_close(layer.experts.up_proj, full.experts.up_proj)
    assert all(parameter.requires_grad for parameter in layer.parameters())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes anew."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_the_size_of_all_experts_is_made():
    layer = mx.MoEConfig(dim=32, hidden=64, num_experts=8, k=1, router="hard").build()
    add_lora(layer, rank=2, targets="experts")
    with Largest() as largest:
        layer(torch.randn(4, 32)).sum().backward()
    assert 0 < largest.numel <= 128 * 32  # one expert's own matrix; a product B A of all would have 8 times that


def test_experts_without_rows_and_all_dropped():
    layer, twin = adapted()
    for each in (layer, twin):
        nn.init.zeros_(each.router.parametrizations["weight"].original if each is layer else each.router.weight)
    x = torch.randn(5, 8)
    layer(x, mask=torch.zeros(5, dtype=torch.bool)).sum().backward()
    assert not layer(x, mask=torch.zeros(5, dtype=torch.bool)).any()
    assert not layer.experts.up_a.grad.any()


def test_only_what_is_asked_for_is_adapted():
    layer, _ = adapted(targets="routers")
    assert isinstance(layer.experts, mx.GroupedMLP)
    merge_lora(layer)
    layer, _ = adapted(targets=("experts",))
    assert isinstance(layer.experts, LoRAExperts)
    assert isinstance(layer.router.weight, nn.Parameter)
    assert not layer.router.weight.requires_grad


@pytest.mark.parametrize("targets", ["experts", "routers", ("routers", "experts")])
def test_adapters_come_back_from_a_file(tmp_path, targets):
    layer, twin = adapted(targets=targets)
    file = tmp_path / "adapters.pt"
    save_lora(layer, file)
    load_lora(twin, file)
    x = torch.randn(9, 8)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    assert file.stat().st_size < 20_000


def test_files_that_do_not_fit(tmp_path):
    layer, twin = adapted()
    file = tmp_path / "adapters.pt"
    save_lora(layer, file)
    other = build("topk", num_experts=5)
    before, x = copy.deepcopy(other), torch.randn(4, 8)
    with pytest.raises(UserError, match=r"adapters of this model in .* got another's; experts\.down_a differs"):
        load_lora(other, file)
    torch.testing.assert_close(other(x), before(x), rtol=0, atol=1e-6)
    file.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"a file that save_lora wrote in .*, got something else"):
        load_lora(twin, file)
    torch.save({"rank": 1}, file)
    with pytest.raises(UserError, match="got something else"):
        load_lora(twin, file)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="targets among experts, routers, got heads"):
        add_lora(build("topk"), targets="heads")
    with pytest.raises(UserError, match="a rank of at least 1, got 0"):
        add_lora(build("topk"), rank=0)
    with pytest.raises(UserError, match="a model with adapters, got a MoE without"):
        merge_lora(build("topk"))
    layer, _ = adapted(targets="routers")
    with pytest.raises(UserError, match="no frozen or adapted experts, got some"):
        add_lora(layer)
