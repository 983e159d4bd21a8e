"""What a language model does on held-out text: experts by domain, coloured samples, generated text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT
from mixtura.models.sample import generate
from mixtura.observe.record import counts_by_group, record
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.data.tokens import Corpus
from mixtura.train.tasks.task import device_of

if TYPE_CHECKING:
    from mixtura.train.tasks.language import LanguageTask


def observe(model: GPT, task: LanguageTask) -> dict[str, Any]:
    """What the report shows of a language model in evaluation mode."""
    corpus, config = task.corpus, task.config
    prompts = config.prompts if has_finite_weights(model) else ()
    return counts_by_group(model, {domain: _forwards(model, task, domain) for domain in corpus.domains}) | {
        "samples": [_sample(model, corpus, domain) for domain in corpus.domains],
        "generated": generated_texts(model, corpus.tokenizer, prompts, seed=config.seed),
    }


def _forwards(model: GPT, task: LanguageTask, domain: str) -> Iterator[object]:
    device = device_of(model)
    return (model(batch.inputs_BL.to(device)) for batch in task.windows(domain))


def _sample(model: GPT, corpus: Corpus, domain: str, *, windows: int = 4) -> dict[str, Any]:
    """The start of a domain's held-out text."""
    context = model.config.context
    ids = [int(token) for token in corpus.val[domain][: context * windows]]
    parts = [ids[start : start + context] for start in range(0, len(ids), context)]
    return coloured(model, parts, tokenizer=corpus.tokenizer, domain=domain)


@torch.no_grad()
def coloured(
    model: nn.Module, windows: Sequence[Sequence[int]], *, tokenizer: TextTokenizer, domain: str
) -> dict[str, Any]:
    """A text's pieces with their first-choice experts, each window routed by itself as in training."""
    experts: dict[str, list[int]] = {}
    for window in windows:
        with record(model) as log:
            model(torch.tensor([window], device=device_of(model)))
        for name, records in log.items():
            experts.setdefault(name, []).extend(records[0].first_choice_T().tolist())
    ids = [token for window in windows for token in window]
    return {"domain": domain, "pieces": tokenizer.pieces(ids), "experts": experts}


def generated_texts(
    model: GPT, tokenizer: TextTokenizer, prompts: Sequence[str], *, seed: int, max_tokens: int = 400
) -> list[dict[str, str]]:
    """A continuation of each prompt, always the same for the same seed."""
    return [
        {
            "prompt": prompt,
            "text": "".join(continuation(model, tokenizer, prompt, seed=seed + n, max_tokens=max_tokens)),
        }
        for n, prompt in enumerate(prompts)
    ]


def has_finite_weights(model: nn.Module) -> bool:
    """Whether training has not diverged; what has diverged draws no tokens.

    Example:
        >>> from mixtura.models.gpt import GPTConfig
        >>> has_finite_weights(GPT(GPTConfig()))
        True
    """
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def continuation(
    model: GPT,
    tokenizer: TextTokenizer,
    prompt: str,
    *,
    seed: int,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
) -> Iterator[str]:
    """What a model in evaluation mode writes behind a prompt, piece by piece; for arguments see `generate`.

    Raises:
        UserError: training has diverged.
    """
    if not has_finite_weights(model):
        raise UserError(
            "expected a trained model, got weights that are not numbers; train anew with a lower --optim.lr"
        )
    device = device_of(model)
    # A document starts behind the end of another one.
    ids_L = torch.tensor([tokenizer.end_id, *tokenizer.encode(prompt)], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    tokens = generate(
        model,
        ids_L,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_id=tokenizer.end_id,
        generator=generator,
    )
    return tokenizer.stream(tokens)
