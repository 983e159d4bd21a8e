import pytest
import torch

from mixtura.errors import UserError
from mixtura.surgery.ensemble import Ensemble


def bigram(seed):
    """A language model whose next token depends on the last one alone."""
    return torch.nn.Embedding.from_pretrained(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) * 2)


def probability(model, ids, t):
    return model.weight[ids[t - 1]].softmax(-1)[ids[t]].item()


@pytest.mark.parametrize("prior", [None, [0.7, 0.2, 0.1]])
def test_each_next_token_by_hand(prior):
    models, ids = [bigram(seed) for seed in range(3)], [0, 3, 1, 4]
    found = Ensemble(models, prior=prior)(torch.tensor([ids])).exp()[0]
    weights = list(prior or [1 / 3] * 3)
    for t in range(4):
        if t:
            weights = [w * probability(m, ids, t) for w, m in zip(weights, models, strict=True)]
        shares = [w / sum(weights) for w in weights]
        expected = sum(share * m.weight[ids[t]].softmax(-1) for share, m in zip(shares, models, strict=True))
        torch.testing.assert_close(found[t], expected)
    torch.testing.assert_close(Ensemble(models, prior=prior).posterior(torch.tensor([ids]))[0], torch.tensor(shares))


def test_a_text_is_as_likely_as_the_models_find_it_on_average():
    models, ids = [bigram(seed) for seed in range(3)], torch.randint(5, (2, 9))
    logp = Ensemble(models)(ids)[:, :-1].gather(-1, ids[:, 1:, None]).sum((1, 2))
    each = torch.stack([m(ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).sum((1, 2)) for m in models])
    torch.testing.assert_close(logp, each.exp().mean(0).log())


def test_it_sees_nothing_of_the_future():
    ensemble, ids = Ensemble([bigram(0), bigram(1)]), torch.randint(5, (1, 8))
    other = ids.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 5
    assert torch.equal(ensemble(ids)[0, :5], ensemble(other)[0, :5])


@pytest.mark.parametrize("prior", [[1.0], [0.0, 0.0], [2.0, -1.0]])
def test_a_prior_that_is_none(prior):
    with pytest.raises(UserError, match="a share of at least 0 for each of 2"):
        Ensemble([bigram(0), bigram(1)], prior=prior)
