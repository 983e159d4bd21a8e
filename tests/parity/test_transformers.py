"""Output and every gradient as transformers' own blocks give them, on small random configurations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import error
from tests.parity.families import FAMILIES, Sizes

families = pytest.mark.parametrize("family", FAMILIES)
TOLERANCE = 1e-5  # relative, by norm, in fp32


def compare(family: str, sizes: Sizes, *, tokens: tuple[int, ...] = (2, 9), scale: float = 1.0) -> None:
    pair = FAMILIES[family](sizes).copy_weights()
    x = scale * torch.randn(*tokens, sizes.dim)
    x_theirs, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs, ours = pair.theirs(x_theirs), pair.ours(x_ours)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert error(ours, theirs) < TOLERANCE
    weight = torch.randn_like(x)
    theirs.backward(weight)
    ours.backward(weight)
    assert error(x_ours.grad, x_theirs.grad) < TOLERANCE
    for name, parameter in pair.ours.named_parameters():
        expected = pair.same[name](lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        assert error(parameter.grad, expected) < TOLERANCE, name


@families
def test_one_block(family):
    compare(family, Sizes(dim=16, hidden=12, num_experts=8, k=2, groups=4, group_k=2))


@families
def test_experts_without_tokens(family):
    compare(family, Sizes(dim=8, hidden=8, num_experts=16, k=2), tokens=(1, 3))


def test_gpt_oss_behind_its_clamps():
    compare("gpt-oss", Sizes(dim=8, hidden=8, num_experts=4, k=2), scale=20.0)


@families
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_random_configurations(family, data):
    groups = data.draw(st.sampled_from([1, 2, 4]), label="groups")
    num_experts = groups * data.draw(st.integers(2, 4), label="experts per group")
    group_k = data.draw(st.integers(1, groups), label="group_k")
    torch.manual_seed(data.draw(st.integers(0, 10_000), label="seed"))
    sizes = Sizes(
        dim=data.draw(st.integers(1, 12), label="dim"),
        hidden=data.draw(st.integers(1, 12), label="hidden"),
        num_experts=num_experts,
        k=data.draw(st.integers(2, max(group_k * (num_experts // groups), 2)), label="k"),
        renormalize=data.draw(st.booleans(), label="renormalize"),
        groups=groups,
        group_k=group_k,
    )
    compare(family, sizes, tokens=(1, data.draw(st.integers(1, 12), label="tokens")))
