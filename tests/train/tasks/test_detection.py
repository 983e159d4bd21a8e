"""Object detection as a kind of training: from the command line to a report, and all that can be wrong."""

import json

import pytest
import torch

from mixtura.cli import main
from mixtura.models.detector import DetectorConfig
from mixtura.models.objects import Objects, Output, detection_losses
from mixtura.train.data.boxed import BoxedBatch, BoxedImages
from mixtura.train.data.image_stream import scaled
from mixtura.train.data.pictures import read_whole
from mixtura.train.data.scenes import SceneConfig
from mixtura.train.inspect import load_model
from mixtura.train.run import open_run
from mixtura.train.tasks.detection import DetectionConfig, DetectionTask
from tests.train.data.test_boxed import some_images
from tests.train.data.test_coco import write_coco
from tests.train.tasks.test_vision import command as vision_command
from tests.train.tiny import rows

OPTIONS = {
    "model.width": 8,
    "model.dim": 16,
    "model.hidden": 16,
    "model.num-experts": 4,
    "data.scenes": 12,
    "data.val-scenes": 6,
    "data.image-size": 32,
    "data.largest": 16,
    "data.batch-size": 4,
    "optim.warmup": 2,
    "steps": 4,
    "eval-interval": 2,
    "checkpoint-interval": 2,
    "device": "cpu",
    "threads": 1,
    "name": "tiny",
}


def command(folder, recipe="detect-tiny", **options):
    return vision_command(folder, recipe, tiny=OPTIONS, **options)


def tiny_task(images: BoxedImages | None = None, **options) -> DetectionTask:
    model = DetectorConfig(width=8, dim=16, hidden=8, num_experts=4)
    config = DetectionConfig(model=model, data=SceneConfig(batch_size=3), **options)
    return DetectionTask.of(config, images or some_images())


class TestFromTheCommandLine:
    def test_a_run_leaves_metrics_panels_and_resumes(self, tmp_path, capsys):
        assert main(command(tmp_path)) == 0
        told = capsys.readouterr().out
        assert "scenes of digits: 12 images to train on, 6 held out, 32 x 32, grey" in told
        run = tmp_path / "runs" / "tiny"
        measured = rows(run)
        assert [row["step"] for row in measured] == [1, 2, 3, 4]
        assert {"mAP", "mAP50"} <= set(measured[1]["val_score"])
        assert set(measured[1]["val_loss"]) == {*map(str, range(10)), "mean"}
        seen = json.loads((run / "observations.json").read_text())
        assert seen["domains"] == [*map(str, range(10)), "background"]
        assert [panel["kind"] for panel in seen["panels"]] == ["picture", "table", "heatmap", "heatmap"]
        assert (run / "classes.txt").read_text().split() == [*map(str, range(10))]
        assert (run / "report.html").stat().st_size > 10_000
        assert main(["eval", str(run)]) == 0
        assert "mAP50" in capsys.readouterr().out
        assert main(["resume", str(run), "--checkpoint", "2"]) == 0
        assert rows(run) == measured

    @pytest.mark.parametrize("num_experts", [4, 0])
    def test_a_folder_of_ones_own_and_the_dense_twin(self, tmp_path, num_experts):
        folder = write_coco(tmp_path / "pets")
        options = {
            "data__path": folder,
            "data__colour": True,
            "model__num_experts": num_experts,
            "data__flip": True,
            "precision": "bf16",
        }
        assert main(command(tmp_path, "detect-tiny-dense", **options)) == 0
        config = json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text())["config"]
        assert (config["model"]["num_classes"], config["model"]["channels"]) == (2, 3)

    def test_objects_are_found_in_image_files(self, tmp_path, capsys):
        folder = write_coco(tmp_path / "pets")
        assert main(command(tmp_path, data__path=folder)) == 0
        run, files = tmp_path / "runs" / "tiny", [str(folder / "images" / f"{n}.png") for n in (0, 3)]
        capsys.readouterr()
        assert main(["detect", str(run), *files, "--least-score", "0"]) == 0
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert [first["file"], second["file"]] == files
        model, config = load_model(open_run(run), checkpoint="best")
        pixels, whole = read_whole(folder / "images" / "3.png", size=32, colour=False)
        assert whole == (64, 64)
        with torch.no_grad():
            (found,) = config.detect(model(scaled(pixels)[None]), size=32)
        assert len(second["found"]) == len(found.scores)
        for entry, box, label in zip(second["found"], found.boxes.tolist(), found.labels.tolist(), strict=True):
            left, top, right, bottom = (2 * side for side in box)
            assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.06)
            assert entry["category"] == ("cat", "dog")[label]
        assert main(["detect", str(run), *files, "--least-score", "1"]) == 0
        assert [json.loads(line)["found"] for line in capsys.readouterr().out.splitlines()] == [[], []]

    def test_images_that_are_none_and_runs_of_other_kinds(self, tmp_path, capsys, run):
        assert main(["detect", str(run), "a.png"]) == 2
        assert "expected the run of a detector, got" in capsys.readouterr().err
        assert main(command(tmp_path, steps=1)) == 0
        mine = str(tmp_path / "runs" / "tiny")
        assert main(["detect", mine, "no.png"]) == 2
        assert "no.png: expected an image, found no file" in capsys.readouterr().err
        assert main(["detect", mine, "a.png", "--least-score", "2"]) == 2
        assert "expected a least score from 0 to 1, got 2" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"data__path": "no/such"}, "no/such: expected a folder in the format of COCO or 'fashion-mnist', found"),
            ({"data__largest": 40}, "expected 1 <= data.smallest <= data.largest <= data.image_size, got 8, 40, 32"),
            ({"model__num_classes": 3}, "expected no --model.num-classes, got 3; it comes from the data"),
            ({"model__dim": 20}, "expected dim that is a multiple of 8, got 20"),
            ({"box_weight": 0}, "box_weight: expected more than 0, got 0"),
            ({"threshold": 1}, "threshold: expected more than 0 and less than 1, got 1"),
            ({"most_overlap": 0}, "most_overlap: expected more than 0 and less than 1, got 0"),
        ],
    )
    def test_bad_input_is_one_line(self, tmp_path, capsys, options, told):
        assert main(command(tmp_path, **options)) == 2
        assert told in capsys.readouterr().err

    def test_without_pycocotools_the_extra_is_named_before_anything_starts(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("mixtura.train.setup.find_spec", lambda name: None if name == "pycocotools" else name)
        assert main(command(tmp_path)) == 2
        assert "run: pip install 'mixtura[detect]'" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


class TestTask:
    def test_the_loss_of_a_batch_is_per_learning_cell(self):
        task = tiny_task(box_weight=2.0)
        model = task.config.build_model()
        batch = next(task.stream())
        losses = detection_losses(model(batch.images), batch.objects)
        cells = float(losses.cells.sum())
        outcome = task.loss(model, batch)
        expected = (losses.by_class.sum() + 2 * losses.boxes.sum()).item()
        assert outcome.loss.item() == pytest.approx(expected / cells, rel=1e-5)
        assert (outcome.total.item(), outcome.weight.item()) == pytest.approx((expected, cells), rel=1e-5)
        assert outcome.parts["boxes"].item() == pytest.approx(losses.boxes.sum().item() / cells, rel=1e-5)

    def test_a_batch_without_objects_has_a_finite_loss(self):
        none = torch.zeros(0, dtype=torch.long)
        batch = BoxedBatch(torch.zeros(2, 1, 8, 8), Objects(boxes=torch.zeros(0, 4), labels=none, image=none))
        outcome = tiny_task().loss(tiny_task().config.build_model(), batch)
        assert outcome.loss.isfinite()
        assert outcome.parts["boxes"] == 0

    def test_held_out_losses_by_class_against_the_whole_set_at_once(self):
        task = tiny_task()
        model = task.config.build_model().eval()
        with torch.no_grad():
            evaluation = task.evaluate(model)
            batch = BoxedBatch.of(task.images.val)
            losses = detection_losses(model(batch.images), batch.objects)
        expected = (losses.by_class + losses.boxes) / losses.cells.clamp(min=1)
        assert evaluation.losses == pytest.approx(dict(zip(("a", "b"), expected.tolist(), strict=True)), rel=1e-5)

    def test_a_detector_that_knows_all_scores_1(self, monkeypatch):
        task = tiny_task()
        model, objects = task.config.build_model(), task.images.val.objects

        def perfect(images):
            output = type(model).forward(model, images)
            logits, boxes = torch.full_like(output.logits, -9.0), output.boxes.clone()
            logits[objects.image, 0, objects.labels], boxes[objects.image, 0] = 9.0, objects.boxes
            return Output(logits, boxes, output.grid)

        monkeypatch.setattr(model, "forward", perfect)
        with torch.no_grad():
            assert task.evaluate(model).scores["mAP"] == pytest.approx(1)

    def test_boxes_that_no_cell_learns_are_counted(self):
        apart, together = some_images(counts=(1, 1), crowd=()), some_images(counts=(2, 1), crowd=())
        assert "no cell learns" not in "\n".join(tiny_task(apart).summary())
        told = tiny_task(together).summary()[-1]
        assert told == "boxes that no cell learns, since smaller ones have all of theirs: 1"
