"""Recipes of language models."""

from dataclasses import replace

from mixtura.models.gpt import GPTConfig
from mixtura.train.data.config import DataConfig
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.language import LanguageConfig


def lm_tiny() -> LanguageConfig:
    """A small language model on the text every Python installation carries: 32 experts, one chosen.

    Cost: about 3 minutes on 2 CPU cores, 1 GB of memory. Result: 1.32 nats per byte (1.90 bits), plain mean over
    held-out C, prose, Python and tests; docs/log.md, 2026-11-22.

    Example:
        >>> lm_tiny().model.num_experts
        32
    """
    return LanguageConfig(
        recipe="lm-tiny",
        model=GPTConfig(
            dim=64,
            layers=2,
            heads=2,
            hidden=128,
            num_experts=32,
            k=1,
            moe_every=2,
            router="switch",
            # Three times the customary coefficient: with 1e-2 the busiest expert got twice the mean and two idled.
            losses={**GPTConfig().losses, "load_balance": 3e-2},
        ),
        data=DataConfig(vocab_size=512, seq_len=128, batch_size=32),
        steps=2700,
        eval_interval=450,
        checkpoint_interval=450,
    )


def lm_tiny_dense() -> LanguageConfig:
    """The dense twin of lm-tiny: equal active parameters, no experts.

    Result: 1.49 nats per byte after 3,018 steps, which take as long as lm-tiny; docs/log.md, 2026-11-22.

    Example:
        >>> lm_tiny_dense().model.num_experts
        0
    """
    base = lm_tiny()
    return replace(base, recipe="lm-tiny-dense", model=replace(base.model, num_experts=0))


def lm_small() -> LanguageConfig:
    """The next size: four blocks of width 128, 32 experts in every second, two chosen, 2,048 byte-pair tokens.

    Cost: a token meets eleven times as many parameters as in lm-tiny; 19.5 minutes on two busy cores. Result: 0.962
    nats per byte after 3,000 steps, where lm-tiny ends at 1.31; one seed.

    Example:
        >>> lm_small().model.k
        2
    """
    return LanguageConfig(
        recipe="lm-small",
        model=GPTConfig(
            dim=128, layers=4, heads=4, hidden=256, num_experts=32, k=2, moe_every=2, router="topk", activation="swiglu"
        ),
        data=DataConfig(vocab_size=2048, seq_len=256, batch_size=16),
        optim=OptimConfig(lr=2e-3),
        steps=3000,
        eval_interval=500,
        checkpoint_interval=500,
    )


def lm_finegrained() -> LanguageConfig:
    """lm-tiny with many narrow experts as in DeepSeekMoE: 64, eight chosen, one for all, balanced without a loss.

    Active parameters and steps are those of lm-tiny: eight experts of a ninth of its hidden width, and the shared one.
    Balance comes from a bias of the choice (Wang et al. 2024).

    Cost: more than lm-tiny's, since eight times as many rows are moved; not timed on a quiet machine. Result: 1.516
    nats per byte after half of its steps, where lm-tiny-dense has 1.608 (`python -m benchmarks.experts`); not run to
    its end.

    Example:
        >>> config = lm_finegrained().model
        >>> config.k * config.expert_hidden + config.shared_hidden
        128
    """
    base = lm_tiny()
    model = replace(
        base.model,
        num_experts=64,
        k=8,
        expert_hidden=14,
        shared_hidden=16,
        router="sigmoid_bias",
        losses={**base.model.losses, "load_balance": 0.0},
    )
    return replace(base, recipe="lm-finegrained", model=model)


def lm_switch() -> LanguageConfig:
    """lm-tiny as a Switch Transformer has it: a capacity of 1.25 times the even share, and what is beyond is dropped.

    Cost: about that of lm-tiny. Result: 1.529 nats per byte after half of its steps, at 3.6 % of the rows dropped
    (`python -m benchmarks.experts`); not run to its end.

    Example:
        >>> lm_switch().model.capacity_factor
        1.25
    """
    base = lm_tiny()
    losses = {**base.model.losses, "load_balance": 1e-2}
    return replace(base, recipe="lm-switch", model=replace(base.model, capacity_factor=1.25, losses=losses))
