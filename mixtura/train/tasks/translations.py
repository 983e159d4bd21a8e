"""What a translator makes of held-out texts: translations and their scores, experts by language."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixtura.models.beam import beam_search
from mixtura.models.translator import Translator
from mixtura.observe.metrics import mutual_information
from mixtura.observe.record import counts_by_group
from mixtura.train.data.pairs import Codec, cut
from mixtura.train.tasks.bleu import Score, score
from mixtura.train.tasks.task import autocast, device_of
from mixtura.train.tasks.texts import has_finite_weights

if TYPE_CHECKING:
    from mixtura.train.tasks.translation import TranslationTask

_SHOWN = 4  # translations of each direction
_LONGER = 2  # a translation has at most so many times the tokens of its source, and some more
_MORE = 10
_LN2 = math.log(2)


def translate(
    model: Translator, codec: Codec, sources: Sequence[Sequence[int]], *, beam: int, alpha: float, tokens: int = 2048
) -> list[str]:
    """Translate texts that `Codec.source` encoded, those of like length together; in their order.

    Args:
        model: in evaluation mode.
        codec: of the model.
        sources: ids of each.
        beam: see `beam_search`.
        alpha: see `beam_search`.
        tokens: of the sources of a batch, at most.
    """
    device, context = device_of(model), model.config.context
    length_N = torch.tensor([len(ids) for ids in sources])
    order_N = length_N.argsort(stable=True)
    texts = [""] * len(sources)
    for start, end in cut(length_N[order_N], tokens=tokens):
        rows = order_N[start:end].tolist()
        width = len(sources[rows[-1]])
        source_BS = torch.tensor(
            [[*sources[row], *[codec.tokenizer.end_id] * (width - len(sources[row]))] for row in rows]
        )
        mask_BS = torch.arange(width) < length_N[rows].unsqueeze(1)
        found = beam_search(
            model,
            source_BS.to(device),
            mask_BS=mask_BS.to(device),
            end_id=codec.tokenizer.end_id,
            beam=beam,
            alpha=alpha,
            max_tokens=[min(context - 1, _LONGER * len(sources[row]) + _MORE) for row in rows],
        )
        for row, best in zip(rows, found, strict=True):
            texts[row] = codec.tokenizer.decode(best[0].ids)
    return texts


def held_out_translations(model: Translator, task: TranslationTask, *, beam: int) -> dict[str, list[str]]:
    """Translations of all held-out texts by direction, in the order of `Pairs.of`."""
    pairs, codec, config = task.data.val, task.data.codec, task.config
    found = {}
    for direction in task.data.directions:
        texts = [pairs.texts[row] for row in pairs.of(direction).tolist()]
        sources = [codec.source(pair.source, to=pair.target_language) for pair in texts]
        with autocast(config, device_of(model)):
            found[direction] = translate(model, codec, sources, beam=beam, alpha=config.alpha)
    return found


def scores(task: TranslationTask, translations: Mapping[str, Sequence[str]]) -> dict[str, Score]:
    """BLEU and chrF of each direction's translations."""
    pairs = task.data.val
    references = {d: [pairs.texts[row].target for row in pairs.of(d).tolist()] for d in translations}
    return {direction: score(texts, references[direction]) for direction, texts in translations.items()}


def observe(model: Translator, task: TranslationTask) -> dict[str, Any]:
    """What the report shows of a translator in evaluation mode."""
    seen = experts_by_direction(model, task)
    panels = language_panels(seen)
    if has_finite_weights(model):
        translations = held_out_translations(model, task, beam=task.config.beam)
        panels = [*_translation_panels(task, translations), *panels]
    return seen | {"panels": panels}


def experts_by_direction(model: Translator, task: TranslationTask) -> dict[str, Any]:
    """How often each mixture chose each expert on each direction's held-out texts; see `counts_by_group`."""
    return counts_by_group(model, {direction: _forwards(model, task, direction) for direction in task.data.directions})


def _forwards(model: Translator, task: TranslationTask, direction: str) -> Iterator[object]:
    device = device_of(model)
    for _, batch in task.held_out(direction):
        here = batch.to(device)
        yield model(here.source_BS, here.inputs_BL, source_mask_BS=here.source_mask_BS, mask_BL=here.mask_BL)


def _translation_panels(task: TranslationTask, translations: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    found, pairs = scores(task, translations), task.data.val
    rows = [
        [direction, round(one.bleu, 2), round(one.chrf, 2), len(translations[direction])]
        for direction, one in found.items()
    ]
    signatures = next(iter(found.values())).signatures
    samples = []
    for direction, texts in translations.items():
        places = pairs.of(direction).tolist()
        for number in range(0, len(places), max(1, len(places) // _SHOWN))[:_SHOWN]:
            pair = pairs.texts[places[number]]
            samples.append([direction, pair.source, pair.target, texts[number]])
    return [
        {
            "kind": "table",
            "title": "BLEU and chrF",
            "note": f"All held-out texts, a beam of {task.config.beam}, length penalty {task.config.alpha}. "
            f"sacrebleu: BLEU {signatures[0]}, chrF {signatures[1]}.",
            "columns": ["direction", "BLEU", "chrF", "texts"],
            "rows": rows,
        },
        {
            "kind": "table",
            "title": "Translations",
            "note": "Held-out texts, evenly spread.",
            "columns": ["direction", "source", "reference", "translation"],
            "rows": samples,
        },
    ]


def language_panels(seen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A heat map for each mixture, and how far its experts are told apart by the language that is translated to.

    Args:
        seen: of `counts_by_group`, by direction.

    Example:
        >>> seen = {"domains": ["a-b", "b-a"], "layers": {"decoder.0": {"counts": [[8, 0], [2, 6]]}}}
        >>> [panel["kind"] for panel in language_panels(seen)]
        ['table', 'heatmap']
        >>> language_panels(seen)[0]["rows"][0]
        ['decoder.0', 0.549, '88%']
    """
    languages = sorted({direction.partition("-")[2] for direction in seen["domains"]})
    rows, maps = [], []
    for name, layer in seen["layers"].items():
        share_GE = shares_by_language(seen["domains"], layer["counts"])
        rows.append([name, round(mutual_information(share_GE) / _LN2, 3), f"{main_share(share_GE):.0%}"])
        maps.append(
            {
                "kind": "heatmap",
                "title": f"Experts by target language, {name}",
                "note": "Share of each expert in the tokens of texts translated to a language.",
                "rows": languages,
                "columns": [str(expert) for expert in range(share_GE.shape[1])],
                "values": [[round(value, 4) for value in row] for row in share_GE.tolist()],
                "axis": "expert",
            }
        )
    if not rows:
        return []
    table = {
        "kind": "table",
        "title": "Experts and languages",
        "note": "Each target language counts the same. A token's expert tells of its language from 0 bits (nothing) "
        f"to {math.log2(len(languages)):.2f} (all). Own language: the tokens that come from their expert's main one; "
        f"{1 / len(languages):.0%} by chance.",
        "columns": ["mixture", "mutual information, bits", "own language"],
        "rows": rows,
    }
    return [table, *maps]


def shares_by_language(directions: Sequence[str], counts_GE: Sequence[Sequence[int]]) -> Tensor:
    """Share of each expert in what is translated to each language, the languages sorted: float64 (languages, E).

    Example:
        >>> shares_by_language(["a-b", "c-b", "b-a"], [[3, 0], [0, 1], [1, 1]]).tolist()
        [[0.5, 0.5], [0.75, 0.25]]
    """
    targets = [direction.partition("-")[2] for direction in directions]
    counts = torch.tensor(counts_GE, dtype=torch.float64)
    sums = [counts[[target == language for target in targets]].sum(0) for language in sorted({*targets})]
    return torch.stack([row_E / row_E.sum().clamp(min=1) for row_E in sums])


def main_share(share_GE: Tensor) -> float:
    """Share of the tokens that are of the language from which their expert has most, each language counting the same.

    Example:
        >>> main_share(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        0.75
    """
    return float((share_GE / share_GE.sum()).amax(0).sum())
