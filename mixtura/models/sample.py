"""Text from a language model, token by token."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.models.causal import Causal
from mixtura.models.gpt import GPT


@torch.no_grad()
def generate(
    model: GPT | Causal,
    ids_L: Tensor,
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 0,
    stop_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield one token id after another behind the prompt.

    When the context is full, the cache is filled again from the last half of it.

    Args:
        model: the language model; run it in eval mode.
        ids_L: the prompt, int64 (L,), at least one token.
        max_tokens: tokens to give at most.
        temperature: 0 takes the most likely token each time.
        top_k: draw among the k most likely tokens; 0: all.
        stop_id: end before this token.
        generator: source of randomness.

    Raises:
        UserError: an empty prompt, a negative temperature, or a negative top_k.

    Example:
        >>> from mixtura.models.gpt import GPTConfig
        >>> model = GPT(GPTConfig(context=8)).eval()
        >>> len(list(generate(model, torch.tensor([1, 2]), max_tokens=20, temperature=0.0)))
        20
    """
    if ids_L.numel() == 0:
        raise UserError("expected a prompt of at least one token, got none")
    if temperature < 0:
        raise UserError(f"expected a temperature of at least 0, got {temperature}")
    if top_k < 0:
        raise UserError(f"expected top_k of at least 0 (0: all tokens), got {top_k}")
    context, device = model.config.context, model.embedding.weight.device
    seen = ids_L.tolist()[-context:]
    cache, pending = None, seen
    for _ in range(max_tokens):
        if cache is None or cache.length + len(pending) > context:
            cache = model.new_cache()
            pending = seen = seen[-context:] if len(seen) < context else seen[-(context // 2 + 1) :]
        logits_V = model(torch.tensor([pending], device=device), cache=cache)[0, -1].float()
        token = _draw(logits_V, temperature=temperature, top_k=top_k, generator=generator)
        if token == stop_id:
            return
        yield token
        seen, pending = [*seen, token], [token]


def _draw(logits_V: Tensor, *, temperature: float, top_k: int, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if 0 < top_k < logits_V.shape[0]:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    probs_V = (logits_V / temperature).softmax(-1)
    return int(torch.multinomial(probs_V, 1, generator=generator))
