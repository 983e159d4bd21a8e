import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.branch import branch, is_finished, merge_branches, read_branches
from mixtura.train.inspect import load_model
from mixtura.train.loop import resume
from mixtura.train.operate import Next
from mixtura.train.run import Run, open_run
from tests.train.tiny import checkpoints, command, write_corpus

STEPS = 4
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """A finished dense run over two domains."""
    folder = tmp_path_factory.mktemp("seed")
    for name in ("prose", "code"):
        (folder / "texts" / name).mkdir(parents=True)
        write_corpus(folder / "texts" / name)
    texts = sorted((folder / "texts" / "code").iterdir())[0]
    texts.write_text(texts.read_text().replace("the", "def").replace("verse", "class"))
    options = {"data__path": folder / "texts", "model__num_experts": 0, "steps": 2, "name": "seed"}
    assert main(command(folder, **options)) == 0
    return folder / "runs" / "seed"


def train_here(runs, *, jobs):
    """What the processes of their own do, without the seconds that each takes to start."""
    assert jobs == 2
    for run in runs:
        resume(run.folder)


@pytest.fixture(scope="module")
def branches(seed):
    """Two finished branches of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixtura.train.branch._train_all", train_here)
        return branch(seed, Next(name="branches", steps=STEPS))


def weights_of(folder, checkpoint="last"):
    return load_model(open_run(folder), checkpoint=checkpoint)[0].state_dict()


def test_each_domain_has_a_branch_that_began_at_the_seed_and_saw_its_own_text_alone(seed, branches):
    seed_run, runs = read_branches(branches)
    assert seed_run.folder.resolve() == seed.resolve()
    assert list(runs) == ["code", "prose"]
    for domain, run in runs.items():
        assert is_finished(run)
        config = run.read_config()
        assert (config.data.domains, config.steps) == ((domain,), STEPS)
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert list(rows[-1]["val_loss"]) == [domain, "mean"]
    first, second = (weights_of(run.folder) for run in runs.values())
    start = weights_of(seed, "best")
    assert not torch.equal(first["blocks.0.attention.qkv.weight"], second["blocks.0.attention.qkv.weight"])
    assert not torch.equal(first["blocks.0.attention.qkv.weight"], start["blocks.0.attention.qkv.weight"])


def test_a_branch_that_is_missing_is_trained_in_a_process_of_its_own_and_the_others_are_left_alone(seed, branches):
    again = shutil.copytree(branches, branches.parent / "again", symlinks=True)
    missing = Run(again / "code")
    expected = weights_of(missing.folder)
    untouched = (again / "prose" / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(missing.folder)
    assert branch(seed, Next(name="again", steps=STEPS)) == again
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(missing.folder).items())
    assert (again / "prose" / "metrics.jsonl").stat().st_mtime_ns == untouched
    assert "report.html" in (missing.folder / "branch.log").read_text()


def test_a_branch_that_was_stopped_goes_on(seed, branches, monkeypatch):
    monkeypatch.setattr("mixtura.train.branch._train_all", train_here)
    stopped = shutil.copytree(branches, branches.parent / "stopped", symlinks=True)
    expected = weights_of(stopped / "prose")
    (stopped / "prose" / "checkpoints" / "best").unlink()
    shutil.rmtree(stopped / "prose" / "checkpoints" / f"step-{STEPS:06d}")
    shutil.rmtree(stopped / "code" / "checkpoints")  # killed before its first checkpoint
    before = checkpoints(stopped / "prose")
    assert before == ["step-000000"] or "step-000000" not in before
    branch(seed, Next(name="stopped", steps=STEPS))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(stopped / "prose").items())
    begun_again = weights_of(stopped / "code")
    assert all(torch.equal(tensor, begun_again[name]) for name, tensor in weights_of(branches / "code").items())


@pytest.mark.parametrize("weights", ["uniform", "score", "posterior", "greedy"])
def test_everything_is_compared_and_written(branches, weights, capsys):
    copied = shutil.copytree(branches, branches.parent / f"merged-{weights}", symlinks=True)
    merge_branches(copied, Next(name="mixture", steps=3 if weights == "uniform" else 0), weights=weights)
    rows = json.loads((copied / "comparison.json").read_text())
    names = ["seed", "branch code", "branch prose", f"average ({weights})", "ensemble", "mixture"]
    assert list(rows) == [*names, "mixture, 3 steps"][: 7 if weights == "uniform" else 6]
    assert all(list(losses) == ["code", "prose", "mean"] for losses in rows.values())
    assert (copied / "comparison.md").read_text() in capsys.readouterr().out + "\n"
    # The ensemble's text is as likely as the mean of what its models find: never much worse than the best of them.
    for domain in ("code", "prose"):
        assert rows["ensemble"][domain] <= min(rows[f"branch {each}"][domain] for each in ("code", "prose")) + 0.05
    mixture = load_model(open_run(copied / "mixture"), checkpoint="best")[0]
    assert mixture.config.num_experts == 2
    average = weights_of(copied / "average", "best")
    if weights == "uniform":
        parts = [weights_of(copied / name, "best") for name in ("code", "prose")]
        torch.testing.assert_close(average["norm.weight"], (parts[0]["norm.weight"] + parts[1]["norm.weight"]) / 2)
        assert rows["mixture, 3 steps"] != rows["mixture"]


def test_experts_of_the_mixture_are_the_branches_mlps(branches):
    copied = shutil.copytree(branches, branches.parent / "experts", symlinks=True)
    assert main(["merge", str(copied), "--k", "1", "--router", "switch", "--name", "one"]) == 0
    state = weights_of(copied / "one", "best")
    for e, name in enumerate(("code", "prose")):
        mlp = weights_of(copied / name, "best")["blocks.0.feed_forward.up_proj.weight"]
        assert torch.equal(state["blocks.0.feed_forward.experts.up_proj"][e], mlp)


def test_branches_of_mixtures_over_clusters_join_their_experts(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mixtura.train.branch._train_all", train_here)
    file, facts = tmp_path / "mixed.jsonl", json.loads((run / "config.json").read_text())
    texts = [f"{('the cat', 'def f')[i % 2]} " * (10 + i % 5) + str(i) for i in range(60)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    facts["config"]["data"] |= {"path": str(file), "cache": str(tmp_path / "cache")}
    (run / "config.json").write_text(json.dumps(facts))
    folder = branch(run, Next(name="sparse", steps=2), clusters=2)
    assert list(read_branches(folder)[1]) == ["cluster-0", "cluster-1"]
    merged = load_model(open_run(merge_branches(folder, Next(name="mixture"))), checkpoint="best")[0]
    assert merged.config.num_experts == 8
    assert merged(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
    assert list(json.loads((folder / "comparison.json").read_text())["seed"]) == ["cluster-0", "cluster-1", "mean"]


def test_what_cannot_be_is_refused(seed, branches, tmp_path):
    cases = {
        "expected a folder of branches": lambda: read_branches(tmp_path),
        r"data\.domains: expected some of code, prose, got verse": lambda: branch(
            seed, Next(name="x", steps=1), domains=["code", "verse"]
        ),
        "at least two domains with different names, got code": lambda: branch(
            seed, Next(name="y", steps=1), domains=["code"]
        ),
        "steps and jobs of at least 1, got steps=0": lambda: branch(seed, Next(name="z")),
        "the branches of this seed in .*, got others": lambda: branch(
            branches / "code", Next(name="../branches", steps=1), domains=["code", "prose"]
        ),
        "weights among uniform, score": lambda: merge_branches(branches, Next(name="m"), weights="loud"),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message):
            call()
    unfinished = shutil.copytree(branches, branches.parent / "unfinished", symlinks=True)
    shutil.rmtree(unfinished / "code" / "checkpoints")
    with pytest.raises(UserError, match="unfinished ones: code; run `mixtura branch` again"):
        read_branches(unfinished)


PARENT = """
import sys, time
from pathlib import Path
from mixtura.train.branch import _start
from mixtura.train.run import Run
process = _start(Run(Path(sys.argv[1])))
print(process.pid, flush=True)
time.sleep(100)
"""


def test_branches_do_not_outlive_the_process_that_began_them(seed, branches):
    """It is killed, which no handler sees; the branch saves a checkpoint and ends."""
    left = shutil.copytree(branches, branches.parent / "left", symlinks=True)
    run = Run(left / "prose")
    facts = json.loads((run.folder / "config.json").read_text())
    facts["config"] |= {"steps": 10**6, "checkpoint_interval": 10**6, "eval_interval": 10**6}
    (run.folder / "config.json").write_text(json.dumps(facts))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(run.folder)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    child = int(parent.stdout.readline())
    until(lambda: len(run.metrics.read_text().splitlines()) > STEPS + 5)
    os.kill(child, 0)  # alive
    parent.kill()
    parent.communicate()
    until(lambda: "which is saved" in (run.folder / "branch.log").read_text())
    (last,) = [name for name in checkpoints(run.folder) if name.startswith("step-") and int(name[5:]) > STEPS]
    assert int(last[5:]) < 10**6


def until(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_a_branch_that_fails_is_named_with_its_log(seed, branches, monkeypatch):
    broken = shutil.copytree(branches, branches.parent / "broken", symlinks=True)
    shutil.rmtree(broken / "code" / "checkpoints" / f"step-{STEPS:06d}")
    monkeypatch.setattr("mixtura.train.branch.sys.executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"got failures, told in .*broken/code/branch\.log; mend it"):
        branch(seed, Next(name="broken", steps=STEPS))
