"""Beam search: the best translations that a few hypotheses at a time lead to."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.models.translator import Translator


class Hypothesis(NamedTuple):
    """A translation.

    Attributes:
        ids: without the end.
        score: log-probability over the length penalty.

    Example:
        >>> Hypothesis((3, 4), -0.5).ids
        (3, 4)
    """

    ids: tuple[int, ...]
    score: float


def length_penalty(tokens: int, *, alpha: float) -> float:
    """((5 + |Y|) / 6)^alpha, what a log-probability is divided by: without it short translations win.

    Source: Wu et al. 2016 (GNMT), equation 14; |Y| counts the end.

    Example:
        >>> length_penalty(1, alpha=0.6), length_penalty(7, alpha=1.0)
        (1.0, 2.0)
    """
    return float(((5 + tokens) / 6) ** alpha)


@torch.no_grad()
def beam_search(
    model: Translator,
    source_BS: Tensor,
    *,
    end_id: int,
    mask_BS: Tensor | None = None,
    beam: int = 4,
    alpha: float = 0.6,
    max_tokens: int | Sequence[int] = 100,
) -> list[list[Hypothesis]]:
    """The best translations of each text, best first, at most `beam`; with a beam of 1, the greedy one.

    Of the 2 * beam best ways to go on with any of the hypotheses, those of the first `beam` that end are finished, and
    the first `beam` that do not end go on (as fairseq does); a text is done with `beam` finished ones. Keys and values
    of all hypotheses are cached, those of the source kept once for all of a text's.

    Args:
        model: in evaluation mode.
        source_BS: the texts.
        end_id: begins and ends a target.
        mask_BS: False for padding.
        beam: hypotheses at a time.
        alpha: of the length penalty; 0: none.
        max_tokens: of a translation, without its end, where it ends; one number for all, or one for each text.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> from mixtura.models.translator import TranslatorConfig
        >>> model = Translator(TranslatorConfig(vocab_size=5)).eval()
        >>> found = beam_search(model, torch.tensor([[1, 2]]), end_id=0, beam=3, max_tokens=2)
        >>> len(found[0]), max(len(hypothesis.ids) for hypothesis in found[0]) <= 2
        (3, True)
    """
    B, K, device = len(source_BS), beam, source_BS.device
    limits = [max_tokens] * B if isinstance(max_tokens, int) else list(max_tokens)
    most = model.config.context - 1
    if beam < 1 or alpha < 0 or len(limits) != B or not all(1 <= limit <= most for limit in limits):
        raise UserError(
            f"expected a beam of at least 1, alpha of at least 0 and max_tokens from 1 to {most} (one, or one for each "
            f"of {B} texts), got {beam}, {alpha} and {max_tokens}"
        )
    limit_B11 = torch.tensor(limits, device=device).view(B, 1, 1)
    goes_on_V = torch.arange(model.config.vocab_size, device=device) != end_id
    memory, cache = model.encode(source_BS, mask_BS=mask_BS), model.new_cache(B * K)
    ids_BKL = torch.full((B, K, 1), end_id, device=device)
    total_BK = torch.full((B, K), -torch.inf, device=device)
    total_BK[:, 0] = 0  # the others are the same hypothesis, and would be found as often
    first_row_B1 = torch.arange(B, device=device).unsqueeze(1) * K
    finished: list[list[Hypothesis]] = [[] for _ in range(B)]
    for length in range(1, max(limits, default=0) + 2):  # with the end
        logits = model.head(model.decode(ids_BKL[:, :, -1].reshape(B * K, 1), memory, cache=cache))
        total_BKV = total_BK.unsqueeze(2) + logits.float().log_softmax(-1).view(B, K, -1)
        if length > min(limits):
            total_BKV = total_BKV.masked_fill((length > limit_B11) & goes_on_V, -torch.inf)
        best_BN, parent_BN, token_BN = _best(total_BKV, 2 * K)
        is_end_BN = token_BN == end_id
        penalty = length_penalty(length, alpha=alpha)
        _collect(finished, ids_BKL, parent_BN[:, :K], score_BK=best_BN[:, :K] / penalty, is_end_BK=is_end_BN[:, :K])
        if all(len(found) >= K for found in finished):
            break
        on_BK = is_end_BN.int().argsort(dim=1, stable=True)[:, :K]
        parent_BK = parent_BN.gather(1, on_BK)
        total_BK = best_BN.masked_fill(is_end_BN, -torch.inf).gather(1, on_BK)
        rows_BK = torch.arange(B, device=device).unsqueeze(1)
        ids_BKL = torch.cat([ids_BKL[rows_BK, parent_BK], token_BN.gather(1, on_BK).unsqueeze(2)], dim=2)
        cache.take((first_row_B1 + parent_BK).flatten())
    return [sorted(found, key=lambda hypothesis: -hypothesis.score)[:K] for found in finished]


def _best(total_BKV: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ways to go on: their log-probabilities, hypotheses and tokens, (B, N) each."""
    K, V = total_BKV.shape[1:]
    best_BN, place_BN = total_BKV.flatten(1).topk(min(number, K * V), dim=1)
    return best_BN, place_BN // V, place_BN % V


def _collect(
    finished: list[list[Hypothesis]], ids_BKL: Tensor, parent_BK: Tensor, *, score_BK: Tensor, is_end_BK: Tensor
) -> None:
    """Add the hypotheses that end here to their text's, unless that one is done."""
    is_end_BK = is_end_BK & score_BK.isfinite()
    beam = ids_BKL.shape[1]
    for text, place in is_end_BK.nonzero().tolist():
        if len(finished[text]) < beam:
            ids = ids_BKL[text, int(parent_BK[text, place]), 1:].tolist()
            finished[text].append(Hypothesis(tuple(ids), float(score_BK[text, place])))
