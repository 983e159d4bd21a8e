"""What a trained model does on held-out text: experts by domain, coloured samples, generated text."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mixtura.errors import UserError
from mixtura.models.gpt import GPT
from mixtura.models.sample import generate
from mixtura.observe.record import record
from mixtura.observe.report import write_report
from mixtura.train.config import TrainConfig
from mixtura.train.data.stream import validation_batches
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.data.tokens import Corpus
from mixtura.train.files import write_file, writing
from mixtura.train.run import Run


def observe(model: GPT, corpus: Corpus, *, config: TrainConfig) -> dict[str, Any]:
    """Everything `observations.json` holds; the model is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    seen: dict[str, Any] = {
        "domains": list(corpus.domains),
        "layers": _counts_by_domain(model, corpus, config),
        "samples": [_sample(model, corpus, domain) for domain in corpus.domains],
        "generated": generated_texts(
            model, corpus.tokenizer, config.prompts if has_finite_weights(model) else (), seed=config.seed
        ),
    }
    model.train(was_training)
    return seen


def finish(run: Run, model: GPT, *, corpus: Corpus, config: TrainConfig) -> Path:
    """Look at the trained model and write the report; returns its path."""
    write_file(run.folder / "observations.json", json.dumps(observe(model, corpus, config=config)))
    with writing(run.folder, what="report.html", advice=f"then: mixtura report {shlex.quote(str(run.folder))}"):
        return write_report(run.folder)


@torch.no_grad()
def _counts_by_domain(model: GPT, corpus: Corpus, config: TrainConfig) -> dict[str, dict[str, list[list[int]]]]:
    device = model.embedding.weight.device
    layers: dict[str, dict[str, list[list[int]]]] = {}
    for domain in corpus.domains:
        with record(model) as log:
            for batch in validation_batches(
                corpus,
                domain,
                batch_size=config.data.batch_size,
                seq_len=config.data.seq_len,
                max_tokens=config.data.val_tokens,
            ):
                model(batch.inputs_BL.to(device))
        for name, records in log.items():
            counts_E = torch.stack([r.counts_E() for r in records]).sum(0)
            layers.setdefault(name, {"counts": []})["counts"].append(counts_E.tolist())
    return layers


@torch.no_grad()
def _sample(model: GPT, corpus: Corpus, domain: str, *, windows: int = 4) -> dict[str, Any]:
    """The start of a domain's held-out text, each window routed by itself as in training."""
    context = model.config.context
    ids = [int(token) for token in corpus.val[domain][: context * windows]]
    experts: dict[str, list[int]] = {}
    for start in range(0, len(ids), context):
        with record(model) as log:
            model(torch.tensor([ids[start : start + context]], device=model.embedding.weight.device))
        for name, records in log.items():
            experts.setdefault(name, []).extend(records[0].first_choice_T().tolist())
    return {"domain": domain, "pieces": corpus.tokenizer.pieces(ids), "experts": experts}


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


def has_finite_weights(model: GPT) -> bool:
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
    device = model.embedding.weight.device
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
