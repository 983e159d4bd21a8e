import json
from dataclasses import replace

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.surgery.layers import mixtures
from mixtura.train.checkpoint import load_state
from mixtura.train.inspect import evaluate_run, load_model
from mixtura.train.operate import Next, prune_run, table, upcycle_run
from mixtura.train.run import Run, open_run
from tests.train.tiny import checkpoints, command

IDS = torch.arange(32).view(2, 16)


def held_out(folder):
    return evaluate_run(folder)[0].with_mean()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A finished run of a tiny dense model."""
    folder = tmp_path_factory.mktemp("dense")
    assert main(command(folder, model__num_experts=0, model__layers=2)) == 0
    return folder / "runs" / "tiny"


def model_of(folder):
    return load_model(open_run(folder), checkpoint="best")[0]


@pytest.mark.parametrize("init", ["upcycle", "split"])
def test_an_upcycled_run_computes_what_the_dense_one_did_and_trains_on(dense, init, capsys):
    name = f"up-{init}"
    folder = upcycle_run(dense, Next(name=name), num_experts=4, k=2, init=init)
    assert folder == dense.parent / name
    before, after = model_of(dense), model_of(folder)
    assert len(mixtures(after)) == 2
    torch.testing.assert_close(after(IDS), before(IDS), rtol=0, atol=1e-4)
    losses = held_out(dense)
    assert held_out(folder) == pytest.approx(losses, abs=1e-4)
    shown = capsys.readouterr().out
    assert f"| before | {losses['poem']:.4f} |" in shown
    assert checkpoints(folder) == ["best", "step-000000"]
    state = load_state(folder / "checkpoints" / "step-000000")
    assert state["counters"]["step"] == 0
    assert state["optimizer"]["state"] == {}

    assert main(["resume", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    assert held_out(folder)["mean"] < losses["mean"]


@pytest.mark.filterwarnings("ignore:the weights of Switch add up")
def test_the_command_trains_at_once(dense, capsys):
    arguments = ["upcycle", str(dense), "--num-experts", "2", "--k", "1", "--router", "switch", "--every", "2"]
    assert main([*arguments, "--init", "drop", "--steps", "3", "--lr", "0.01", "--name", "dropped"]) == 0
    shown = capsys.readouterr().out
    assert "| trained |" in shown
    folder = dense.parent / "dropped"
    assert shown.endswith(f"run: {folder}\n")
    config = Run(folder).read_config()
    assert (config.steps, config.optim.lr, config.model.router, config.model.moe_every) == (3, 0.01, "switch", 2)
    assert list(mixtures(model_of(folder))) == ["blocks.1.feed_forward"]
    assert "step-000003" in checkpoints(folder)


def test_groups_of_units_come_from_the_runs_own_text(dense):
    folder = upcycle_run(dense, Next(name="clustered"), num_experts=4, k=4, init="cluster")
    torch.testing.assert_close(model_of(folder)(IDS), model_of(dense)(IDS), rtol=0, atol=2e-3)
    assert Run(folder).read_config().model.hidden == 4


@pytest.mark.parametrize("by", ["reap", "router_norm"])
def test_a_pruned_run_holds_the_experts_that_matter(run, by, capsys):
    whole = model_of(run)
    folder = prune_run(run, Next(name=f"pruned-{by}"), keep=0.5, by=by, batches=2)
    small = model_of(folder)
    assert small.config.num_experts == 2
    kept = json.loads("[" + capsys.readouterr().out.partition("kept experts ")[2].splitlines()[0] + "]")
    for name, layer in mixtures(small).items():
        experts = mixtures(whole)[name].experts
        assert torch.equal(layer.experts.up_proj, experts.up_proj[kept])
    assert main(["resume", str(folder)]) == 0


def test_pruning_from_the_command_line(run, capsys):
    assert main(["prune", str(run), "--keep", "3", "--by", "frequency", "--steps", "2", "--name", "less"]) == 0
    assert "| trained |" in capsys.readouterr().out
    assert model_of(run.parent / "less").config.num_experts == 3
    assert main(["prune", str(run), "--keep", "3", "--name", "less"]) == 2
    assert "'less' exists" in capsys.readouterr().err.replace(str(run.parent) + "/", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dense, run: upcycle_run(run, Next(name="x")), "expected a dense run, got .* with 4 experts"),
        (lambda dense, run: prune_run(dense, Next(name="x")), "a model with mixtures of GroupedMLP experts"),
        (lambda dense, run: upcycle_run(dense, Next(name="x"), init="split", every=2), "every=1 with init='split'"),
        (lambda dense, run: upcycle_run(dense, Next(name="x", checkpoint="7")), "--checkpoint to be one of"),
        (lambda dense, run: Next(name="x", steps=-1), "steps and lr of at least 0, got steps=-1"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(dense, run, change, message):
    with pytest.raises(UserError, match=message):
        change(dense, run)
    assert not (dense.parent / "x").exists()
    assert not (run.parent / "x").exists()


def test_tables_align_by_their_columns():
    rows = {"a": {"c": 1.0, "mean": 2.0}, "b": {"c": 0.12345, "mean": 3.0}}
    assert table(rows).splitlines()[2:] == ["| a | 1.0000 | 2.0000 |", "| b | 0.1235 | 3.0000 |"]


def test_following_changes_only_what_it_names(run):
    config = Run(run).read_config()
    new = Next(name="n").config(config, out=run.parent, model=config.model)
    assert new == replace(config, name="n", out=str(run.parent))
