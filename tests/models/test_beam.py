"""Beam search against every possible translation, a loop without caches or batches, and the greedy one."""

import itertools

import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.beam import Hypothesis, beam_search, length_penalty
from tests.models.test_translator import make_model

END = 0


def log_probability(model, source, ids):
    """Of a whole translation, its end included, in one pass without a cache."""
    given = torch.tensor([[END, *ids]])
    logp = model(source.unsqueeze(0), given)[0].log_softmax(-1)
    return float(sum(logp[at, token] for at, token in enumerate([*ids, END])))


def sharp_model(**options):
    """Whose choices are clear, so that ends come early and late."""
    torch.manual_seed(options.pop("seed", 0))
    model = make_model(**options).eval()
    model.embedding.weight.data *= 2
    return model


@torch.no_grad()
def loop_search(model, source, *, beam, alpha, max_tokens):
    """The search as its docstring tells it, one text, all from scratch in every step."""
    live, done = [((), 0.0)], []
    for length in range(1, max_tokens + 2):
        ways = []
        for ids, total in live:
            logp = model(source.unsqueeze(0), torch.tensor([[END, *ids]]))[0, -1].log_softmax(-1)
            allowed = [END] if length > max_tokens else range(len(logp))
            ways += [(total + float(logp[token]), ids, token) for token in allowed]
        ways = sorted(ways, key=lambda way: -way[0])[: 2 * beam]
        ended = [(ids, total) for total, ids, token in ways[:beam] if token == END]
        done += [Hypothesis(ids, total / ((5 + length) / 6) ** alpha) for ids, total in ended]
        if len(done) >= beam:
            break
        live = [((*ids, token), total) for total, ids, token in ways if token != END][:beam]
    return sorted(done[:beam], key=lambda hypothesis: -hypothesis.score)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_beam_that_holds_all_finds_the_best_of_all_translations(alpha):
    model = sharp_model(vocab_size=4)
    source = torch.tensor([[1, 3, 2], [2, 2, 1]])
    with torch.no_grad():
        for text, found in zip(
            source, beam_search(model, source, end_id=END, beam=40, alpha=alpha, max_tokens=3), strict=True
        ):
            every = [ids for length in range(4) for ids in itertools.product([1, 2, 3], repeat=length)]
            scores = {
                ids: log_probability(model, text, ids) / length_penalty(len(ids) + 1, alpha=alpha) for ids in every
            }
            best = sorted(scores, key=lambda ids: -scores[ids])
            assert len(found) == 40 == len(every)
            assert [hypothesis.ids for hypothesis in found][:10] == best[:10]
            assert found[0].score == pytest.approx(scores[best[0]], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize(
    "options", [{}, {"router": "topk", "k": 2}, {"num_experts": 0}], ids=["switch", "topk", "dense"]
)
def test_it_is_the_search_that_its_page_tells(beam, options):
    model = sharp_model(seed=beam, **options)
    lengths = torch.tensor([6, 2, 4])
    source, mask = torch.randint(1, 13, (3, 6)), torch.arange(6) < lengths.unsqueeze(1)
    found = beam_search(model, source, end_id=END, mask_BS=mask, beam=beam, max_tokens=8)
    for text, length, mine in zip(source, lengths, found, strict=True):
        expected = loop_search(model, text[:length], beam=beam, alpha=0.6, max_tokens=8)
        assert [hypothesis.ids for hypothesis in mine] == [hypothesis.ids for hypothesis in expected]
        assert [hypothesis.score for hypothesis in mine] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_each_text_can_have_a_limit_of_its_own():
    model, source = sharp_model(seed=4), torch.randint(1, 13, (3, 5))
    together = beam_search(model, source, end_id=END, beam=3, max_tokens=[1, 7, 4])
    for text, limit, found in zip(source, (1, 7, 4), together, strict=True):
        (alone,) = beam_search(model, text.unsqueeze(0), end_id=END, beam=3, max_tokens=limit)
        assert [hypothesis.ids for hypothesis in found] == [hypothesis.ids for hypothesis in alone]
        assert max(len(hypothesis.ids) for hypothesis in found) <= limit


@torch.no_grad()
def test_a_beam_of_one_is_greedy():
    model, source = sharp_model(seed=3), torch.randint(1, 13, (4, 5))
    for text, (found,) in zip(source, beam_search(model, source, end_id=END, beam=1, max_tokens=8), strict=True):
        ids = []
        while len(ids) < 8:
            token = int(model(text.unsqueeze(0), torch.tensor([[END, *ids]]))[0, -1].argmax())
            if token == END:
                break
            ids.append(token)
        assert found.ids == tuple(ids)


def test_a_wider_beam_finds_no_less_likely_translations_here():
    model, source = sharp_model(seed=1), torch.randint(1, 13, (6, 5))
    best = [
        [found[0].score for found in beam_search(model, source, end_id=END, beam=beam, alpha=0, max_tokens=6)]
        for beam in (1, 30)
    ]
    assert all(wide >= narrow - 1e-5 for narrow, wide in zip(*best, strict=True))


@pytest.mark.parametrize(
    "options", [{"beam": 0}, {"alpha": -0.1}, {"max_tokens": 0}, {"max_tokens": 12}, {"max_tokens": [3, 3]}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(
        UserError, match="expected a beam of at least 1, alpha of at least 0 and max_tokens from 1 to 11"
    ):
        beam_search(make_model().eval(), torch.ones(1, 2).long(), end_id=END, **options)
