"""Image classification as a kind of training: from the command line to a report, and all that can be wrong."""

import json

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.cli import main
from mixtura.models.vit import ViTConfig
from mixtura.train.data.images import ImageConfig, Images, ImageSet
from mixtura.train.tasks.vision import VisionConfig, VisionTask
from tests.train.data.made import write_folder
from tests.train.tiny import rows

OPTIONS = {
    "model.dim": 16,
    "model.hidden": 16,
    "model.expert-hidden": 8,
    "model.heads": 2,
    "model.layers": 2,
    "model.num-experts": 4,
    "data.batch-size": 8,
    "optim.warmup": 2,
    "steps": 6,
    "eval-interval": 3,
    "checkpoint-interval": 3,
    "device": "cpu",
    "threads": 1,
    "name": "tiny",
}


def command(folder, recipe="vit-tiny", *, tiny=OPTIONS, **options):
    """`train` with a tiny configuration; double underscores stand for dots, None leaves an option out."""
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    arguments = ["train", recipe]
    for name, value in ({"out": folder / "runs"} | tiny | given).items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [] if value is None else [f"--{name}", *map(str, values)]
    return arguments


def tiny_task(**data) -> VisionTask:
    """Two classes, of dark and of bright images."""
    pixels = torch.tensor([20, 30, 220, 240], dtype=torch.uint8).view(-1, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    part = ImageSet(pixels, torch.tensor([0, 0, 1, 1]))
    images = Images(name="t", classes=("dark", "bright"), train=part, val=part)
    sizes = {"image_size": 0, "dim": 16, "hidden": 8, "heads": 2, "layers": 2, "patch_size": 2}
    return VisionTask.of(VisionConfig(model=ViTConfig(**sizes), data=ImageConfig(batch_size=3, **data)), images)


class TestFromTheCommandLine:
    def test_a_run_leaves_metrics_a_map_of_patches_and_resumes(self, tmp_path, capsys):
        assert main(command(tmp_path)) == 0
        assert "1,442 images to train on, 355 held out, 8 x 8, grey" in capsys.readouterr().out
        run = tmp_path / "runs" / "tiny"
        measured = rows(run)
        assert [row["step"] for row in measured] == [1, 2, 3, 4, 5, 6]
        assert set(measured[2]["val_score"]) == {"accuracy", "worst class"}
        assert set(measured[2]["val_loss"]) == {*map(str, range(10)), "mean"}
        seen = json.loads((run / "observations.json").read_text())
        assert seen["domains"] == [*map(str, range(10))]
        assert [panel["kind"] for panel in seen["panels"]] == ["picture"]
        assert (run / "classes.txt").read_text().split() == [*map(str, range(10))]
        assert (run / "report.html").stat().st_size > 10_000
        assert main(["eval", str(run)]) == 0
        told = capsys.readouterr().out
        assert "nats/image" in told
        assert "accuracy" in told

    def test_a_stopped_run_goes_on_to_the_same_numbers(self, tmp_path):
        for folder in ("whole", "parts"):
            assert main(command(tmp_path / folder)) == 0
        whole, parts = (rows(tmp_path / folder / "runs" / "tiny") for folder in ("whole", "parts"))
        assert whole == parts
        assert main(["resume", str(tmp_path / "parts" / "runs" / "tiny"), "--checkpoint", "3"]) == 0
        assert rows(tmp_path / "parts" / "runs" / "tiny") == whole

    @pytest.mark.parametrize(
        "router",
        [
            {"model__router": "soft", "model__k": 4, "model__router_options": ("slots_per_expert", 3)},
            {"model__router": "expert_choice"},
            {"model__policy": "priority", "model__eval_capacity_factor": 0.5, "model__losses__load": 5e-3},
        ],
        ids=["soft", "expert choice", "priority"],
    )
    def test_other_routing(self, tmp_path, router):
        losses = {"model__losses__importance": 0, "model__losses__load": 0}
        assert main(command(tmp_path, steps=2, **(losses | router))) == 0
        assert len(rows(tmp_path / "runs" / "tiny")) == 2

    def test_a_folder_of_ones_own(self, tmp_path):
        folder = write_folder(tmp_path / "pets", size=(8, 8))
        assert main(command(tmp_path, "vit-tiny-dense", data__path=folder, model__num_experts=0)) == 0
        config = json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text())["config"]
        assert (config["model"]["num_classes"], config["model"]["image_size"]) == (2, 8)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"data__path": "no/such"}, "no/such: expected a folder of images or 'fashion-mnist', found none"),
            ({"model__patch_size": 3}, "expected --model.patch-size that divides the 8 pixels of the images, got 3"),
            ({"model__num_classes": 3}, "expected no --model.num-classes, got 3; it comes from the data"),
            ({"data__crop": -1}, "data.crop: expected 0 or more, got -1"),
            ({"label_smoothing": 1}, "label_smoothing: expected 0 or more and less than 1, got 1"),
            ({"model__heads": 3}, "expected heads that divide dim=16, got heads=3"),
        ],
    )
    def test_bad_input_is_one_line(self, tmp_path, capsys, options, told):
        assert main(command(tmp_path, **options)) == 2
        message = capsys.readouterr().err
        assert told in message

    def test_an_unreadable_image_is_named(self, tmp_path, capsys):
        folder = write_folder(tmp_path / "pets", size=(8, 8))
        (folder / "dog" / "7.png").write_bytes(b"")
        assert main(command(tmp_path, data__path=folder)) == 2
        assert "7.png: expected an image, got an empty file; remove it" in capsys.readouterr().err


class TestTask:
    def test_losses_and_scores_against_a_loop(self):
        task = tiny_task()
        model = task.config.build_model().eval()
        torch.nn.init.normal_(model.head.weight)
        x = task.images.val.images.float() / 127.5 - 1
        logits = model(x)
        nats = [-logits[i].log_softmax(0)[label].item() for i, label in enumerate((0, 0, 1, 1))]
        hits = [float(logits[i].argmax() == label) for i, label in enumerate((0, 0, 1, 1))]
        with torch.no_grad():
            found = task.evaluate(model)
        assert found.losses == pytest.approx({"dark": sum(nats[:2]) / 2, "bright": sum(nats[2:]) / 2}, rel=1e-5)
        expected = {"accuracy": sum(hits) / 4, "worst class": min(sum(hits[:2]), sum(hits[2:])) / 2}
        assert found.scores == pytest.approx(expected)

    def test_labels_are_smoothed_in_training_alone(self):
        task, model = tiny_task(), tiny_task().config.build_model()
        batch = next(task.stream())
        model.train()
        logits = torch.zeros(3, 2)  # the head starts as nothing
        smooth = F.cross_entropy(logits, batch.labels_B, label_smoothing=0.1)
        outcome = task.loss(model, batch)
        assert outcome.loss.item() == pytest.approx(smooth.item())
        assert (outcome.items, float(outcome.weight)) == (3, 3.0)
        assert outcome.parts["accuracy"] == (batch.labels_B == 0).float().mean()
