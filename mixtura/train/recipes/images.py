"""Recipes on images: telling them apart, and drawing them; `mixtura.train.recipes` lists them with all others."""

from dataclasses import replace

from mixtura.models.dit import DiTConfig
from mixtura.models.vit import ViTConfig
from mixtura.train.data.images import ImageConfig
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.generation import GenerationConfig
from mixtura.train.tasks.vision import VisionConfig


def vit_tiny() -> VisionConfig:
    """A small Vision Transformer with V-MoE's routing on the digits of scikit-learn: 8 experts, 2 chosen.

    Cost: 20 seconds on one CPU core. Result: 99.7 % of the 355 held-out digits; docs/log.md, 2026-11-22.

    Example:
        >>> vit_tiny().model.num_experts
        8
    """
    return VisionConfig(
        recipe="vit-tiny",
        model=ViTConfig(image_size=0, patch_size=2),
        data=ImageConfig(batch_size=64, crop=0),
        optim=OptimConfig(lr=4e-3),
        steps=600,
        eval_interval=100,
        checkpoint_interval=300,
    )


def vit_tiny_dense() -> VisionConfig:
    """The dense twin of vit-tiny: equal active parameters, no experts.

    Result: 99.2 % of the held-out digits, two images fewer: they are too easy to need experts.

    Example:
        >>> vit_tiny_dense().model.num_experts
        0
    """
    base = vit_tiny()
    return replace(base, recipe="vit-tiny-dense", model=replace(base.model, num_experts=0))


def vit_fashion() -> VisionConfig:
    """The same on Fashion-MNIST, which the Debian package dataset-fashion-mnist brings; patches of 7 x 7 pixels.

    Cost: about two minutes on one CPU core. Result: not run to its end; 7,000 steps of the same model, under a schedule
    of their own (`python -m benchmarks.vision`), tell 87.0 % of the held-out images; docs/vision.md.

    Example:
        >>> vit_fashion().data.path
        'fashion-mnist'
    """
    return VisionConfig(
        recipe="vit-fashion",
        model=ViTConfig(image_size=0, patch_size=7),
        data=ImageConfig(path="fashion-mnist", batch_size=64, crop=2, flip=True),
        steps=4690,
        eval_interval=938,
        checkpoint_interval=938,
    )


def vit_fashion_dense() -> VisionConfig:
    """The dense twin of vit-fashion: equal active parameters, no experts.

    Result: not run to its end; 86.7 % after 7,000 steps; docs/vision.md.

    Example:
        >>> vit_fashion_dense().model.num_experts
        0
    """
    base = vit_fashion()
    return replace(base, recipe="vit-fashion-dense", model=replace(base.model, num_experts=0))


def dit_tiny() -> GenerationConfig:
    """A small Transformer that draws the digits of scikit-learn by flow matching: 8 experts, one chosen.

    Cost: two minutes on one CPU core. Result: docs/vision.md, of 3,000 steps.

    Example:
        >>> dit_tiny().model.num_experts
        8
    """
    return GenerationConfig(
        recipe="dit-tiny",
        model=DiTConfig(image_size=0, patch_size=2),
        data=ImageConfig(batch_size=64, crop=0),
        optim=OptimConfig(lr=4e-3),
        steps=2000,
        eval_interval=250,
        checkpoint_interval=500,
    )


def dit_tiny_dense() -> GenerationConfig:
    """The dense twin of dit-tiny: equal active parameters, no experts.

    Example:
        >>> dit_tiny_dense().model.num_experts
        0
    """
    base = dit_tiny()
    return replace(base, recipe="dit-tiny-dense", model=replace(base.model, num_experts=0))
