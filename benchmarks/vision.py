"""Vision: mixtures against their dense twins of equal active parameters on Fashion-MNIST, and V-MoE's capacity curve.

    python -m benchmarks.vision train vit --seed 0      # each model by itself, one thread, in any order
    python -m benchmarks.vision collect                 # accuracy against capacity, the pictures, vision.json

Every model sees the same images in the same order, with the same changes, and the same number of steps.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mixtura as mx
from mixtura.models.condconv import CondConvConfig, CondConvNet
from mixtura.models.count import count_parameters
from mixtura.models.vit import ViT, ViTConfig
from mixtura.train.data.image_stream import ImageStream, in_order
from mixtura.train.data.images import ImageConfig, Images, ImageSet, read_images

RUNS = Path("runs/vision")
CAPACITIES = (1.0, 0.5, 0.3, 0.2, 0.15, 0.1)
BATCH = 64
GROUP = 8  # images that are routed together, as V-MoE has it
VIT = ViTConfig()
CONV = CondConvConfig(width=8)
MODELS: dict[str, Any] = {
    "vit": VIT,
    "vit-dense": replace(VIT, num_experts=0),
    "condconv": CONV,
    "conv-routed": replace(CONV, kind="routed"),
    "conv-dense": replace(CONV, kind="dense"),
}


def build(name: str) -> nn.Module:
    config = MODELS[name]
    return ViT(config) if isinstance(config, ViTConfig) else CondConvNet(config)


def accuracy(model: nn.Module, images: ImageSet, *, group: int = 250) -> float:
    """Share of the images whose class comes out on top."""
    model.eval()
    with torch.no_grad():
        hits = [(model(b.images).argmax(1) == b.labels_B).sum() for b in in_order(images, batch_size=group)]
    return int(sum(hits)) / len(images)


def fit(model: nn.Module, images: Images, *, steps: int, seed: int, lr: float = 1.5e-3) -> list[list[float]]:
    """Train with AdamW, a short warm-up and a cosine; gives (step, processor seconds, accuracy) along the way."""
    stream = ImageStream(images, batch_size=BATCH, seed=seed, crop=2, flip=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    curve, spent = [], 0.0
    for step in range(1, steps + 1):
        model.train()
        start, batch = time.process_time(), next(stream)
        with mx.losses.collect_losses(model) as losses:
            loss = nn.functional.cross_entropy(model(batch.images), batch.labels_B, label_smoothing=0.1)
        (loss + losses.total()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        spent += time.process_time() - start
        if step % max(1, steps // 8) == 0 or step == steps:
            curve.append([step, round(spent, 1), accuracy(model, images.val)])
            print(f"{step:5d}  {spent:6.1f} s  loss {loss.item():.4f}  accuracy {curve[-1][2]:.4f}", flush=True)
    return curve


def train(name: str, images: Images, *, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(name)
    curve = fit(model, images, steps=steps, seed=seed)
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), RUNS / f"{name}-{seed}.pt")
    count = count_parameters(model)
    row = {
        "steps": steps,
        "accuracy": curve[-1][2],
        "processor seconds": curve[-1][1],
        **count._asdict(),
        "curve": curve,
    }
    (RUNS / f"{name}-{seed}.json").write_text(json.dumps(row) + "\n", encoding="utf-8")


def main() -> None:
    """Train one model, or collect what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "collect"))
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist, or a folder with its files")
    parser.add_argument("--steps", type=int, default=5626, help="six epochs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = read_images(ImageConfig(path=options.data))
    if options.what == "train":
        train(options.model, images, steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
