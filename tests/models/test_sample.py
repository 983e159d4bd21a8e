"""Generation against the plain forward, and its options."""

import pytest
import torch

from mixtura import UserError
from mixtura.models.sample import _draw, generate
from tests.models.test_gpt import make_model, tokens


def greedy(model, ids, count):
    """The most likely tokens by whole forwards, while they fit into the context."""
    ids = ids.clone()
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids.unsqueeze(0))[0, -1:].argmax(-1)])
    return ids[-count:].tolist()


@pytest.fixture
def model():
    return make_model(tie_weights=False).eval()


def test_temperature_zero_takes_the_most_likely(model):
    ids = tokens(4)
    assert list(generate(model, ids, max_tokens=8, temperature=0.0)) == greedy(model, ids, 8)


def test_past_the_context_it_goes_on_from_the_last_half(model):
    ids, context = tokens(4), model.config.context
    given = list(generate(model, ids, max_tokens=3 * context, temperature=0.0))
    assert len(given) == 3 * context
    # The last of these comes from a full context; the next one from its last half and the newest token.
    seen = [*ids.tolist(), *given]
    full = context - 4 + 1
    assert given[:full] == greedy(model, ids, full)
    refilled = torch.tensor(seen[: 4 + full][-(context // 2 + 1) :])
    assert given[full] == greedy(model, refilled, 1)[0]


@pytest.mark.parametrize("length", [11, 12, 13, 40])
def test_long_prompts_are_cut_to_their_end(model, length):
    ids = tokens(length)
    given = list(generate(model, ids, max_tokens=5, temperature=0.0))
    assert len(given) == 5
    shown = ids if length < 12 else ids[-7:]
    assert given[0] == greedy(model, shown, 1)[0]


def test_a_context_of_one_token():
    model = make_model(context=1).eval()
    assert len(list(generate(model, tokens(3), max_tokens=4, temperature=0.0))) == 4


def test_it_stops_before_the_stop_token(model):
    ids = tokens(3)
    free = list(generate(model, ids, max_tokens=9, temperature=0.0))
    stop = free[4]
    assert list(generate(model, ids, max_tokens=9, temperature=0.0, stop_id=stop)) == free[: free.index(stop)]


def test_draws_repeat_under_a_seed(model):
    def drawn(seed):
        return list(generate(model, tokens_, max_tokens=30, generator=torch.Generator().manual_seed(seed)))

    tokens_ = tokens(3)
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_top_k_draws_among_the_k_most_likely():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    drawn = {_draw(logits, temperature=5.0, top_k=2, generator=generator) for _ in range(200)}
    assert drawn == {1, 3}
    everything = {_draw(logits, temperature=5.0, top_k=0, generator=generator) for _ in range(200)}
    assert everything == {0, 1, 2, 3}
    assert {_draw(logits, temperature=5.0, top_k=9, generator=generator) for _ in range(200)} == {0, 1, 2, 3}


def test_the_temperature_sets_the_frequencies():
    logits = torch.tensor([0.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 2.0):
        ones = sum(_draw(logits, temperature=temperature, top_k=0, generator=generator) for _ in range(4000))
        assert ones / 4000 == pytest.approx(torch.tensor(1 / temperature).sigmoid().item(), abs=0.03)


def test_no_gradients_are_kept(model):
    next(generate(model, tokens(3)))
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "expected a prompt of at least one token, got none"),
        ([1], {"temperature": -0.5}, "expected a temperature of at least 0, got -0.5"),
        ([1], {"top_k": -1}, r"expected top_k of at least 0 \(0: all tokens\), got -1"),
    ],
)
def test_errors(model, ids, options, message):
    with pytest.raises(UserError, match=message):
        list(generate(model, torch.tensor(ids, dtype=torch.int64), **options))
