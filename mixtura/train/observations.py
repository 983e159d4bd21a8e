"""What a trained model does on held-out data, and the report of its run."""

import json
import shlex
from pathlib import Path

import torch
from torch import nn

from mixtura.observe.report import write_report
from mixtura.train.files import write_file, writing
from mixtura.train.run import Run
from mixtura.train.tasks.task import Task


@torch.no_grad()
def finish(run: Run, model: nn.Module, task: Task) -> Path:
    """Look at the trained model and write the report; returns its path."""
    was_training = model.training
    model.eval()
    seen = task.observe(model)
    model.train(was_training)
    write_file(run.folder / "observations.json", json.dumps(seen))
    with writing(run.folder, what="report.html", advice=f"then: mixtura report {shlex.quote(str(run.folder))}"):
        return write_report(run.folder)
