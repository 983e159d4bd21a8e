"""Drawing images: the mixture against its dense twin, by the distance of a classifier's features to those of real ones.

python -m benchmarks.generation train dit --seed 0     # each model by itself, one thread
python -m benchmarks.generation collect                # distances, pictures, generation.json
python -m benchmarks.generation train dit --data fashion-mnist      # and so on: generation_fashion.json
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mixtura as mx
from benchmarks.common import save
from mixtura.models.condconv import CondConvConfig, CondConvNet
from mixtura.models.count import count_parameters
from mixtura.models.dit import DiT, DiTConfig, flow_loss, frechet_distance, sample
from mixtura.train.data.image_stream import ImageStream, in_order
from mixtura.train.data.images import ImageConfig, Images, ImageSet, read_images

RUNS = Path("runs/generation")
PICTURES = Path("docs/images")
MODELS = ("dit", "dit-dense")
BATCH = 64
MOST = 4000  # images that are drawn, and real ones that they are compared with
LEVELS = 5
UNLABELLED = 0.1


def optimise(model: nn.Module, losses: Any, *, steps: int, lr: float) -> float:
    """AdamW with a short warm-up and a cosine; gives the processor's seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    start = time.process_time()
    for step in range(steps):
        with mx.losses.collect_losses(model) as balance:
            loss = next(losses)
        (loss + balance.total()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % max(1, steps // 8) == 0:
            print(f"{step + 1:5d}  {time.process_time() - start:6.1f} s  loss {loss.item():.4f}", flush=True)
    return time.process_time() - start


def flow_losses(model: DiT, images: Images, *, seed: int) -> Any:
    for batch in ImageStream(images, batch_size=BATCH, seed=seed):
        draw = torch.rand(BATCH, 2)
        label = batch.labels_B.where(draw[:, 1] >= UNLABELLED, len(images.classes))
        yield flow_loss(model, batch.images, label, time_B=draw[:, 0], noise=torch.randn_like(batch.images)).mean()


def class_losses(model: CondConvNet, images: Images) -> Any:
    for batch in ImageStream(images, batch_size=BATCH, seed=0, crop=1):
        yield nn.functional.cross_entropy(model(batch.images), batch.labels_B)


def sizes(name: str, images: Images) -> DiTConfig:
    """Of a model for images of this size."""
    size = images.image_size
    config = DiTConfig(image_size=size, patch_size=2 if size < 16 else 4)
    return replace(config, num_experts=0) if name == "dit-dense" else config


def folder(images: Images) -> Path:
    return RUNS / f"{images.image_size}"


def load_model(name: str, seed: int, images: Images) -> DiT:
    model = DiT(sizes(name, images))
    model.load_state_dict(torch.load(folder(images) / f"{name}-{seed}.pt"))
    return model.eval()


def first(part: ImageSet) -> ImageSet:
    """As many as are looked at; the data stand in no order of classes."""
    return replace(part, images=part.images[:MOST], labels=part.labels[:MOST])


def train(name: str, images: Images, *, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = DiT(sizes(name, images))
    seconds = optimise(model, flow_losses(model, images, seed=seed), steps=steps, lr=4e-3)
    folder(images).mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder(images) / f"{name}-{seed}.pt")
    row = {"steps": steps, "processor seconds": round(seconds, 1), **count_parameters(model)._asdict()}
    (folder(images) / f"{name}-{seed}.json").write_text(json.dumps(row) + "\n", encoding="utf-8")


def classifier(images: Images) -> CondConvNet:
    """A dense convolutional net on the real images, whose features tell them apart."""
    torch.manual_seed(0)
    size = images.image_size
    net = CondConvNet(CondConvConfig(image_size=size, width=16, stages=2 if size < 16 else 3, kind="dense"))
    optimise(net.train(), class_losses(net, images), steps=600, lr=3e-3)
    return net.eval()


@torch.no_grad()
def features(net: CondConvNet, images: Tensor) -> Tensor:
    return torch.cat([net.features(part) for part in images.split(256)])


def pixels(part: ImageSet) -> Tensor:
    return torch.cat([batch.images for batch in in_order(part, batch_size=256)])


@torch.no_grad()
def held_out_error(model: DiT, part: ImageSet) -> float:
    generator = torch.Generator().manual_seed(0)
    x, label = pixels(part), part.labels
    errors = []
    for _ in range(4):
        t, noise = torch.rand(len(x), generator=generator), torch.randn(x.shape, generator=generator)
        errors.append(flow_loss(model, x, label, time_B=t, noise=noise).mean())
    return float(torch.stack(errors).mean())


def measure(name: str, seed: int, net: CondConvNet, images: Images) -> tuple[dict[str, float], Tensor]:
    """What a trained model reaches, and what it draws: as many images of each class as there are to learn from."""
    model, label = load_model(name, seed, images), first(images.train).labels
    drawn = torch.cat(
        [sample(model, part, steps=20, generator=torch.Generator().manual_seed(seed)) for part in label.split(1000)]
    )
    with torch.no_grad():
        hits = (torch.cat([net(part) for part in drawn.split(256)]).argmax(1) == label).float().mean()
    real = features(net, pixels(first(images.train)))
    row = {
        "distance": frechet_distance(features(net, drawn), real),
        "held-out squared error": held_out_error(model, first(images.val)),
        "drawn as asked, says the classifier": float(hits),
    }
    firsts = torch.stack([(label == digit).nonzero()[:8, 0] for digit in range(10)]).flatten()
    return row, drawn[firsts]


@torch.no_grad()
def experts_by(images: Images) -> dict[str, list[list[float]]]:
    """Share of each expert of the last mixture by level of noise and by class, of the first run."""
    model, part = load_model("dit", 0, images), first(images.val)
    x, label, generator = pixels(part), part.labels, torch.Generator().manual_seed(0)

    def shares(x: Tensor, label: Tensor, time_B: Tensor) -> list[float]:
        t = time_B.view(-1, 1, 1, 1)
        with mx.record(model) as log:
            model((1 - t) * torch.randn(x.shape, generator=generator) + t * x, time_B, label)
        counts = list(log.values())[-1][0].counts_E().double()
        return [round(share, 4) for share in (counts / counts.sum()).tolist()]

    levels = [shares(x, label, torch.full((len(x),), (n + 0.5) / LEVELS)) for n in range(LEVELS)]
    by_class = []
    for digit in range(10):
        here = label == digit
        by_class.append(shares(x[here], label[here], torch.rand(int(here.sum()), generator=generator)))
    return {"noise": levels, "class": by_class}


def draw(result: dict[str, Any], samples: dict[str, Tensor], path: Path) -> None:
    """Samples of both models, and the experts by noise and by class."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12, 4.2), layout="constrained")
    for axis, (name, images) in zip(axes, samples.items(), strict=False):
        S = images.shape[-1]
        rows = images.view(10, 8, S, S).permute(0, 2, 1, 3).reshape(10 * S, 8 * S).numpy()
        axis.imshow(rows, cmap="gray", vmin=-1, vmax=1)
        axis.set_axis_off()
        axis.set_title({"dit": "with mixtures", "dit-dense": "dense twin"}[name])
    times = [f"{n / LEVELS:.1f}-{(n + 1) / LEVELS:.1f}" for n in range(LEVELS)]
    for axis, (by, rows) in zip(axes[2:], result["experts"].items(), strict=True):
        axis.imshow(rows, cmap="viridis", vmin=0, aspect="auto")
        axis.set_xlabel("expert")
        names = times if by == "noise" else list(map(str, range(10)))
        axis.set_yticks(range(len(names)), names)
        axis.set_title("experts by time, 0: noise" if by == "noise" else "experts by class")
    figure.savefig(path, dpi=110)


def collect(images: Images) -> dict[str, Any]:
    """Means over the seeds, and the distance between the real digits' own two parts."""
    net = classifier(images)
    models, samples = {}, {}
    for name in MODELS:
        found, firsts = [], None
        for path in sorted(folder(images).glob(f"{name}-[0-9].json")):
            row, drawn = measure(name, int(path.stem[-1]), net, images)
            found.append(row | json.loads(path.read_text(encoding="utf-8")))
            firsts = drawn if firsts is None else firsts
        if firsts is not None:
            models[name] = {key: round(statistics.mean(row[key] for row in found), 4) for key in found[0]}
            models[name]["runs"] = len(found)
            samples[name] = firsts
    with torch.no_grad():
        part = first(images.val)
        seen = features(net, pixels(part))
        hits = float((torch.cat([net(x) for x in pixels(part).split(256)]).argmax(1) == part.labels).float().mean())
    floor = frechet_distance(seen, features(net, pixels(first(images.train))))
    result = {
        "models": models,
        "classifier's accuracy": round(hits, 4),
        "distance of held-out images": round(floor, 4),
        "experts": experts_by(images),
    }
    draw(result, samples, PICTURES / f"{named(images)}.png")
    return result


def named(images: Images) -> str:
    return "generation" if images.image_size == 8 else "generation_fashion"


def main() -> None:
    """Train one model, or collect what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "collect"))
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--data", help="fashion-mnist, or a folder with its files; without: scikit-learn's digits")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = read_images(ImageConfig(path=options.data) if options.data else ImageConfig())
    if options.what == "train":
        train(options.model, images, steps=options.steps, seed=options.seed)
    else:
        print(save(named(images), collect(images)))


if __name__ == "__main__":
    main()
