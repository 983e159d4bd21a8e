from pathlib import Path

import pytest

from mixtura.cli import parse
from mixtura.train import branch as branches
from mixtura.train import commands
from tests.test_cli import refused


def heard(monkeypatch, module, name):
    """What the named function is called with, in place of the call."""
    calls = []

    def listen(*arguments, **options):
        calls.append((arguments, options))
        return Path("new")

    monkeypatch.setattr(module, name, listen)
    return calls


def test_options_reach_the_functions(monkeypatch):
    calls = heard(monkeypatch, commands, "upcycle_run")
    words = ["a", "--num-experts", "4", "--k", "1", "--init", "split", "--router", "switch", "--every", "2"]
    given = parse(commands.UpcycleArguments, [*words, "--steps", "5", "--lr", "0.1", "--name", "b"], prog="x")
    assert commands.upcycle(given) == Path("new")
    options = {"num_experts": 4, "k": 1, "init": "split", "router": "switch", "every": 2}
    assert calls == [(("a", given), options)]
    assert (given.name, given.steps, given.lr, given.checkpoint) == ("b", 5, 0.1, "best")

    calls = heard(monkeypatch, commands, "prune_run")
    words = ["a", "--keep", "0.25", "--by", "random", "--k", "1", "--batches", "3", "--checkpoint", "last"]
    given = parse(commands.PruneArguments, words, prog="x")
    commands.prune(given)
    options = {"keep": 0.25, "by": "random", "k": 1, "batches": 3}
    assert calls == [(("a", given), options)]
    assert (given.name, given.checkpoint) == ("pruned", "last")

    calls = heard(monkeypatch, branches, "branch")
    words = ["a", "--steps", "7", "--domains", "x", "y", "--clusters", "4", "--jobs", "3"]
    given = parse(commands.BranchArguments, words, prog="x")
    commands.branch(given)
    assert calls == [(("a", given), {"domains": ("x", "y"), "clusters": 4, "jobs": 3})]
    assert (given.name, given.steps) == ("branches", 7)

    calls = heard(monkeypatch, branches, "merge_branches")
    words = ["a", "--weights", "greedy", "--k", "1", "--router", "switch", "--steps", "9"]
    given = parse(commands.MergeArguments, words, prog="x")
    commands.merge(given)
    assert calls == [(("a", given), {"weights": "greedy", "k": 1, "router": "switch"})]
    assert (given.name, given.steps) == ("mixture", 9)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["upcycle", "runs/none"], ["expected a run's folder, got 'runs/none'"]),
        (["upcycle"], ["(required)", "mixtura upcycle --help"]),
        (["upcycle", "a", "--init", "magic"], ["'magic'", "'upcycle', 'drop'", "--help"]),
        (["upcycle", "a", "--steps", "-1"], ["steps and lr of at least 0, got steps=-1"]),
        (["prune", "runs/none"], ["expected a run's folder"]),
        (["prune", "a", "--by", "taste"], ["'taste'", "'reap', 'frequency'"]),
        (["branch", "runs/none"], ["expected a run's folder"]),
        (["merge", "runs/none"], ["expected a folder of branches, got 'runs/none' without branches.json"]),
        (["merge", "a", "--weights", "loud"], ["'loud'", "'uniform', 'score'"]),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(tmp_path)
    refused(capsys, arguments, *parts)
    assert not list(tmp_path.iterdir())
