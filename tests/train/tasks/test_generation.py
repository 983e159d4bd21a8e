"""Image generation as a kind of training: from the command line to samples, and all that can be wrong."""

import json

import pytest
import torch

from mixtura.cli import main
from mixtura.models.dit import DiTConfig, flow_loss
from mixtura.train.data.images import ImageConfig, Images, ImageSet
from mixtura.train.tasks.generation import GenerationConfig, GenerationTask, as_bytes
from tests.train.tasks.test_vision import command
from tests.train.tiny import rows

TINY = {"sample_steps": 2, "data__batch_size": 64}


def tiny_task() -> GenerationTask:
    pixels = torch.tensor([20, 30, 220, 240], dtype=torch.uint8).view(-1, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    part = ImageSet(pixels, torch.tensor([0, 0, 1, 1]))
    images = Images(name="t", classes=("dark", "bright"), train=part, val=part)
    model = DiTConfig(image_size=0, patch_size=2, dim=16, hidden=16, heads=2, layers=2, num_experts=4)
    return GenerationTask.of(GenerationConfig(model=model, data=ImageConfig(batch_size=3)), images)


def test_a_run_leaves_samples_and_maps_of_experts(tmp_path, capsys):
    assert main(command(tmp_path, "dit-tiny", **TINY)) == 0
    run = tmp_path / "runs" / "tiny"
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    seen = json.loads((run / "observations.json").read_text())
    assert [panel["kind"] for panel in seen["panels"]] == ["heatmap", "picture"]
    assert len(seen["panels"][0]["values"]) == 5
    for shares in seen["panels"][0]["values"]:
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    before = rows(run)
    assert main(["resume", str(run), "--checkpoint", "3"]) == 0
    assert rows(run) == before
    assert main(["eval", str(run)]) == 0
    assert "squared error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unlabelled": 1}, "unlabelled: expected 0 or more and less than 1, got 1"),
        ({"sample_steps": 0}, "sample_steps: expected at least 1, got 0"),
        ({"guidance": -1}, "guidance: expected 0 to 100, got -1"),
        ({"model__patch_size": 3}, "expected --model.patch-size that divides the 8 pixels of the images, got 3"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, told):
    assert main(command(tmp_path, "dit-tiny", **{**TINY, **options})) == 2
    assert told in capsys.readouterr().err


def test_held_out_losses_against_a_loop():
    task = tiny_task()
    model = task.config.build_model().eval()
    torch.nn.init.normal_(model.head.weight)
    generator, errors = torch.Generator().manual_seed(0), []
    x = task.images.val.images.float() / 127.5 - 1
    for here in (slice(0, 3), slice(3, 4)):
        images, label = x[here], task.images.val.labels[here]
        time = torch.rand(len(label), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        errors += flow_loss(model, images, label, time_B=time, noise=noise).tolist()
    with torch.no_grad():
        found = task.evaluate(model)
    assert found.losses == pytest.approx({"dark": sum(errors[:2]) / 2, "bright": sum(errors[2:]) / 2}, rel=1e-5)


def test_labels_are_withheld_as_often_as_said(monkeypatch):
    task, seen = tiny_task(), []
    model = task.config.build_model()
    monkeypatch.setattr(
        "mixtura.train.tasks.generation.flow_loss",
        lambda model, images, label_B, **_: seen.append(label_B) or images.flatten(1).mean(1),
    )
    stream = task.stream()
    for _ in range(200):
        task.loss(model, next(stream))
    share = (torch.cat(seen) == 2).float().mean().item()
    assert 0.05 < share < 0.16


def test_numbers_become_bytes():
    assert as_bytes(torch.tensor([-2.0, 0.0, 0.5, 3.0])).tolist() == [0, 128, 191, 255]
