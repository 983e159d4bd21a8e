import json
import shutil

import torch

from mixtura.train.inspect import load_model
from mixtura.train.observations import finish
from mixtura.train.run import Run

LAYER = "blocks.0.feed_forward"


def test_what_a_run_leaves_about_its_experts(finished_run):
    seen = json.loads((finished_run / "observations.json").read_text())
    assert seen["domains"] == ["poem"]
    assert list(seen["layers"]) == [LAYER]
    (counts,) = seen["layers"][LAYER]["counts"]
    assert len(counts) == 4
    assert sum(counts) == 64  # all held-out tokens that are evaluated, each with one expert
    (sample,) = seen["samples"]
    assert len(sample["pieces"]) == len(sample["experts"][LAYER]) == 64
    assert set(sample["experts"][LAYER]) <= {0, 1, 2, 3}
    (generated,) = seen["generated"]
    assert generated["prompt"] == "the"
    assert 0 < len(generated["text"]) <= 400


def test_observing_leaves_the_model_as_it_was(finished_run, tmp_path):
    model, config = load_model(Run(finished_run), checkpoint="last")
    copied = tmp_path / "run"
    shutil.copytree(finished_run, copied, symlinks=True)
    (copied / "observations.json").unlink()
    model.train()
    before = torch.get_rng_state()
    finish(Run(copied), model, config.prepare())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    seen = json.loads((copied / "observations.json").read_text())
    assert seen == json.loads((finished_run / "observations.json").read_text())
