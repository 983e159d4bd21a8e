"""The compiled parts and torch's composed ones: one result, one gradient, whichever runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura import UserError
from mixtura.kernels import native
from mixtura.models import fused
from mixtura.models.gpt import rotary_tables


@pytest.fixture(params=["library", "torch"])
def way(request, monkeypatch):
    """Run with the compiled library and without it."""
    if request.param == "torch":
        monkeypatch.setenv(native.VARIABLE, "off")
    elif native.availability():
        pytest.skip(f"native kernel: {native.availability()}")


def same(got, expected, inputs):
    """Values and gradients."""
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("way")
class TestEitherWay:
    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
    def test_norm_is_torchs(self, shape):
        ours, theirs, x = fused.RMSNorm(5), nn.RMSNorm(5), torch.randn(shape, requires_grad=True)
        nn.init.normal_(ours.weight)
        theirs.load_state_dict(ours.state_dict())
        same(ours(x), theirs(x), [x])
        ours(x).sum().backward()
        theirs(x).sum().backward()
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)

    def test_attention_is_torchs(self):
        x, angle = torch.randn(2, 9, 6, 4, requires_grad=True), torch.randn(9, 2)
        q, k, v = x.chunk(3, dim=2)
        q, k = (fused.normalise_and_turn(part, angle.cos(), angle.sin()) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        same(fused.causal_attention(x, angle.cos(), angle.sin()), expected, [x])

    @pytest.mark.parametrize("most", [1, 300, 1 << 20])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("least", [1, 1 << 20], ids=["oneDNN", "torch"])
    def test_cross_entropy_is_torchs_in_chunks_of_any_size(self, most, bias, least, monkeypatch):
        monkeypatch.setattr(fused, "MOST_LOGITS", most)
        monkeypatch.setattr(fused, "LEAST_FOR_ONEDNN", least)
        x, head, target = torch.randn(150, 3, requires_grad=True), nn.Linear(3, 5, bias=bias), torch.randint(5, (150,))
        same(fused.linear_cross_entropy(x, head, target), F.cross_entropy(head(x), target), [x, head.weight])
        with torch.no_grad():
            torch.testing.assert_close(fused.linear_cross_entropy(x, head, target), F.cross_entropy(head(x), target))

    def test_no_token_has_no_loss(self):
        with pytest.raises(UserError, match="expected at least one token"):
            fused.linear_cross_entropy(torch.zeros(0, 3), nn.Linear(3, 4), torch.zeros(0, dtype=torch.long))

    @pytest.mark.parametrize("target", [torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.int32)])
    def test_targets_that_would_be_read_wrongly_are_refused(self, target):
        with pytest.raises(UserError, match=r"expected targets of shape \(3,\) and int64"):
            fused.linear_cross_entropy(torch.zeros(3, 2), nn.Linear(2, 4, bias=False), target)

    def test_autocast_rounds_the_products_alone(self):
        x, head, target = torch.randn(8, 16), nn.Linear(16, 5, bias=False), torch.randint(5, (8,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fused.linear_cross_entropy(x, head, target)
            expected = F.cross_entropy(head(x).float(), target)
        assert loss.dtype is torch.float32
        torch.testing.assert_close(loss, expected)

    def test_a_graph_is_the_same(self):
        norm, x = fused.RMSNorm(4), torch.randn(3, 4)
        assert torch.allclose(torch.func.vmap(norm)(x), norm(x), atol=1e-6)


def test_a_second_derivative_is_refused():
    if native.availability():
        pytest.skip(f"native kernel: {native.availability()}")
    norm, x = fused.RMSNorm(4), torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(x).sum(), x, create_graph=True)
    with pytest.raises(UserError, match="expected first derivatives of a kernel"):
        grad.sum().backward()


class TestNormaliseAndTurn:
    def test_scores_depend_on_the_distance_alone(self):
        cos, sin = rotary_tables(30, 8)
        q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

        def score(i, j):
            turned = [fused.normalise_and_turn(x, cos[at : at + 1], sin[at : at + 1]) for x, at in ((q, i), (k, j))]
            return (turned[0] * turned[1]).sum()

        for distance in (0, 1, 7):
            first = score(distance, 0)
            for j in (3, 10, 22):
                torch.testing.assert_close(score(j + distance, j), first, rtol=1e-4, atol=1e-4)
        assert (score(7, 0) - score(1, 0)).abs() > 1e-3

    def test_every_vector_gets_one_size_and_place_zero_is_not_turned(self):
        cos, sin = rotary_tables(9, 6)
        x = torch.randn(2, 9, 3, 6)
        turned = fused.normalise_and_turn(x, cos, sin)
        torch.testing.assert_close(turned.square().mean(-1), torch.ones(2, 9, 3))
        torch.testing.assert_close(turned[:, 0], F.rms_norm(x[:, 0], (6,)))
