"""Recipes that find objects in images."""

from dataclasses import replace

from mixtura.train.data.scenes import SceneConfig
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.detection import DetectionConfig


def detect_tiny() -> DetectionConfig:
    """Finds digits of many sizes in scenes of 64 x 64: 8 experts as the head, 3 that look around less or more.

    Your own images with boxes, in the format of COCO: `--data.path FOLDER`.

    Cost: about five minutes on one CPU core. Result: mAP 0.852 on held-out scenes; docs/detection.md.

    Example:
        >>> detect_tiny().model.num_experts
        8
    """
    return DetectionConfig(
        recipe="detect-tiny",
        optim=OptimConfig(lr=8e-3, weight_decay=0.05),
        steps=3000,
        eval_interval=1000,
        checkpoint_interval=500,
    )


def detect_tiny_dense() -> DetectionConfig:
    """The dense twin of detect-tiny: equal active parameters, no experts.

    Result: mAP 0.852 too; docs/detection.md.

    Example:
        >>> detect_tiny_dense().model.num_experts
        0
    """
    base = detect_tiny()
    return replace(base, recipe="detect-tiny-dense", model=replace(base.model, num_experts=0))


def detect_fashion() -> DetectionConfig:
    """The same on scenes of clothes from Fashion-MNIST, which the Debian package dataset-fashion-mnist brings.

    Example:
        >>> detect_fashion().data.path
        'fashion-mnist'
    """
    data = SceneConfig(path="fashion-mnist", smallest=12, largest=36, most=5)
    return replace(detect_tiny(), recipe="detect-fashion", data=data)


def detect_fashion_dense() -> DetectionConfig:
    """The dense twin of detect-fashion: equal active parameters, no experts.

    Example:
        >>> detect_fashion_dense().model.num_experts
        0
    """
    base = detect_fashion()
    return replace(base, recipe="detect-fashion-dense", model=replace(base.model, num_experts=0))
