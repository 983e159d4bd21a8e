"""Recipes that translate."""

from dataclasses import replace

from mixtura.models.blocks import loss_coefficients
from mixtura.models.translator import TranslatorConfig
from mixtura.train.data.parallel import ParallelConfig
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.translation import TranslationConfig


def translate_tiny() -> TranslationConfig:
    """English to Spanish and back by one small model, learned from the verses of two Bibles; or from texts of your own.

    Verses of at most 32 tokens a side. Cost: 20 minutes on one busy CPU core. Result: BLEU 18.3 to Spanish and 20.2 to
    English on held-out books; docs/translation.md. Your own: `--data.source news.en --data.target news.es`.

    Example:
        >>> translate_tiny().model.num_experts
        8
    """
    return TranslationConfig(
        recipe="translate-tiny",
        model=TranslatorConfig(
            dim=128,
            layers=2,
            heads=4,
            hidden=512,
            expert_hidden=256,
            num_experts=8,
            k=2,
            moe_every=2,
            router="topk",
            losses=loss_coefficients({"load_balance": 1e-2, "z": 1e-3}),
        ),
        data=ParallelConfig(vocab_size=4096, max_tokens=32, batch_tokens=512),
        optim=OptimConfig(lr=2e-3),
        steps=7000,  # 5 epochs of the Bibles
        eval_interval=1000,
        checkpoint_interval=1000,
    )


def translate_tiny_dense() -> TranslationConfig:
    """The dense twin of translate-tiny: equal active parameters, no experts.

    Example:
        >>> translate_tiny_dense().model.num_experts
        0
    """
    base = translate_tiny()
    return replace(base, recipe="translate-tiny-dense", model=replace(base.model, num_experts=0))
