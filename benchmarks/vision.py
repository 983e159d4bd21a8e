"""Vision: mixtures against their dense twins of equal active parameters on Fashion-MNIST, and V-MoE's capacity curve.

    python -m benchmarks.vision train condconv          # each model by itself, one thread, in any order
    python -m benchmarks.vision collect                 # accuracy against capacity, the pictures, vision.json

Every model sees the same images in the same order, with the same changes, and the same number of steps.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mixtura as mx
from benchmarks.common import save
from mixtura import Capacity
from mixtura.dispatch import Policy
from mixtura.models.condconv import CondConvConfig, CondConvNet
from mixtura.models.count import count_parameters
from mixtura.models.vit import ViT, ViTConfig
from mixtura.train.data.image_stream import ImageStream, in_order, scaled
from mixtura.train.data.images import ImageConfig, Images, ImageSet, read_images
from mixtura.train.tasks.patches import coloured, expert_of_patch, png

RUNS = Path("runs/vision")
PICTURES = Path("docs/images")
CAPACITIES = (1.0, 0.5, 0.3, 0.2, 0.15, 0.1)
BATCH = 64
CURVE_IMAGES = 2000  # the first held-out ones
GROUP = 8  # images that are routed together, as V-MoE has it
VIT = ViTConfig(patch_size=7)
CONV = CondConvConfig(width=8)
MEANS = ("accuracy", "processor seconds")
STEPS = {"vit": 7000, "conv": 2813}
RATES = {"vit": 3e-3, "conv": 1.5e-3}
MODELS: dict[str, Any] = {
    "vit": VIT,
    "vit-dense": replace(VIT, num_experts=0),
    "condconv": CONV,
    "conv-routed": replace(CONV, kind="routed"),
    "conv-dense": replace(CONV, kind="dense"),
}


def kind(name: str) -> str:
    return "vit" if isinstance(MODELS[name], ViTConfig) else "conv"


def build(name: str) -> nn.Module:
    config = MODELS[name]
    return ViT(config) if isinstance(config, ViTConfig) else CondConvNet(config)


def accuracy(model: nn.Module, images: ImageSet, *, group: int = 250) -> float:
    """Share of the images whose class comes out on top."""
    model.eval()
    with torch.no_grad():
        hits = [(model(b.images).argmax(1) == b.labels_B).sum() for b in in_order(images, batch_size=group)]
    return int(sum(hits)) / len(images)


def fit(model: nn.Module, images: Images, *, steps: int, seed: int, lr: float) -> list[list[float]]:
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
        if step % max(1, steps // 2) == 0 or step == steps:
            curve.append([step, round(spent, 1), accuracy(model, images.val)])
            print(f"{step:5d}  {spent:6.1f} s  loss {loss.item():.4f}  accuracy {curve[-1][2]:.4f}", flush=True)
    return curve


def train(name: str, images: Images, *, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(name)
    curve = fit(model, images, steps=steps, seed=seed, lr=RATES[kind(name)])
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


def with_capacity(model: ViT, factor: float, policy: Policy) -> ViT:
    """Limit every mixture in evaluation."""
    for layer in model.modules():
        if isinstance(layer, mx.MoE):
            layer.eval_capacity, layer.policy = Capacity(factor=factor), policy
    return model


def load(name: str, seed: int) -> ViT:
    model = build(name)
    model.load_state_dict(torch.load(RUNS / f"{name}-{seed}.pt"))
    assert isinstance(model, ViT)
    return model.eval()


def capacity_curve(images: ImageSet, seeds: list[int]) -> dict[str, list[float]]:
    """Mean accuracy over the seeds at each capacity, for both orders of serving."""
    policies: dict[str, Policy] = {"token order": "drop", "batch priority": "priority"}
    curve: dict[str, list[float]] = {name: [] for name in policies}
    for factor in CAPACITIES:
        for name, policy in policies.items():
            found = [accuracy(with_capacity(load("vit", seed), factor, policy), images, group=GROUP) for seed in seeds]
            curve[name].append(round(statistics.mean(found), 4))
            print(f"C {factor:4}  {name:>14}  {curve[name][-1]:.4f}", flush=True)
    return curve


def draw_curve(result: dict[str, Any], path: Path) -> None:
    """Accuracy against capacity, with the dense twin as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    for (name, values), colour in zip(result["capacity"]["accuracy"].items(), ("#888888", "#1668b8"), strict=True):
        axis.plot(CAPACITIES, values, "o-", label=name, color=colour, lw=1.8)
    axis.axhline(result["capacity"]["dense twin"], color="#c44e52", lw=0.9, ls=":", label="dense twin")
    axis.set_xscale("log")
    axis.set_xticks(CAPACITIES, [f"{c:g}" for c in CAPACITIES])
    axis.minorticks_off()
    axis.set_xlabel("capacity C in evaluation, as a multiple of the even share")
    axis.set_ylabel("accuracy, Fashion-MNIST")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def draw_patches(images: Images, path: Path) -> dict[str, float]:
    """Patches by expert of the last mixture: as chosen, and at a capacity of 0.3 in both orders; shares dropped."""
    firsts = [int((images.val.labels == label).nonzero()[0]) for label in range(len(images.classes))]
    shown, rows, dropped = images.val.images[firsts], [], {}
    for name, factor, policy in (("all", 8.0, "drop"), ("token order", 0.3, "drop"), ("priority", 0.3, "priority")):
        model = with_capacity(load("vit", 0), factor, policy)
        expert_BL = list(expert_of_patch(model, scaled(shown)).values())[-1]
        dropped[name] = round((expert_BL < 0).float().mean().item(), 3)
        rows.append(coloured(shown, expert_BL, size=model.config.patch_size))
    below = [row[row.shape[0] // 2 :] for row in rows[1:]]  # the images themselves once
    path.write_bytes(png(torch.cat([rows[0], *below])))
    return dropped


def collect(images: Images) -> dict[str, Any]:
    """Everything that was trained, by model: means over the seeds."""
    models = {}
    for name in MODELS:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUNS.glob(f"{name}-[0-9].json"))]
        if rows:
            first = {key: rows[0][key] for key in ("steps", "total", "active")}
            means = {key: round(statistics.mean(row[key] for row in rows), 4) for key in MEANS}
            models[name] = {"runs": len(rows), **first, **means}
    if "vit" not in models:
        return {"models": models}
    seeds = [int(path.stem[-1]) for path in sorted(RUNS.glob("vit-[0-9].pt"))]
    some = images.val.part(torch.arange(CURVE_IMAGES))
    curve = capacity_curve(some, seeds)
    dense = statistics.mean(accuracy(load("vit-dense", seed), some) for seed in seeds)
    dropped = draw_patches(images, PICTURES / "vision_patches.png")
    capacity = {
        "C": CAPACITIES,
        "images": CURVE_IMAGES,
        "images routed together": GROUP,
        "accuracy": curve,
        "dense twin": dense,
    }
    return {"models": models, "capacity": capacity, "dropped in the picture": dropped}


def main() -> None:
    """Train one model, or collect what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "collect"))
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist, or a folder with its files")
    parser.add_argument("--steps", type=int, help="of 64 images; without: as in the table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = read_images(ImageConfig(path=options.data))
    if options.what == "train":
        train(options.model, images, steps=options.steps or STEPS[kind(options.model)], seed=options.seed)
        return
    result = collect(images)
    if "capacity" in result:
        draw_curve(result, PICTURES / "vision_capacity.png")
    print(save("vision", result))


if __name__ == "__main__":
    main()
