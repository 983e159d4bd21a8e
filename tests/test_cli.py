"""The command line as a newcomer and as an adversary meet it: every wrong value ends in one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixtura.cli import main, parse
from mixtura.errors import UserError
from mixtura.train.recipes import get_recipe
from mixtura.train.tasks.language import LanguageConfig
from tests.train.tiny import checkpoints, command, rows


def refused(capsys, arguments, *parts):
    """The command ends with code 2 and one line on stderr that holds all parts."""
    capsys.readouterr()
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("mixtura: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert not set("│╭╰─") & set(errors)
    for part in parts:
        assert part in errors
    return errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fly"], ["expected a command among train, resume", "got 'fly'", "mixtura --help"]),
        (["--steps", "3"], ["expected a command"]),
        (["train", "lm-huge"], ["expected a recipe among lm-tiny", "'lm-huge'", "mixtura recipes"]),
        (["train", "--recipe", "lm-tiny-dense"], ["write: mixtura train lm-tiny-dense"]),
        (["train", "lm-tiny", "lm-tiny"], ["lm-tiny", "mixtura train lm-tiny --help"]),
        (["train", "--stepz", "3"], ["--stepz", "Perhaps you meant: --steps", "--help"]),
        (["train", "--steps", "ten"], ["--steps", "'ten'", "--help"]),
        (["train", "--steps"], ["--steps", "Missing value"]),
        (["train", "--steps", "0"], ["steps: expected at least 1, got 0"]),
        (["train", "--precision", "fp8"], ["'fp8'", "'fp32', 'bf16'"]),
        (["train", "--tensorboard", "maybe"], ["'maybe'", "True"]),
        (["train", "--optim.lr", "nan"], ["optim.lr: expected more than 0, got nan"]),
        (["train", "--data.val-fraction", "2"], ["data.val_fraction: expected more than 0", "got 2.0"]),
        (["train", "--seed", "-1"], ["seed: expected at least 0, got -1"]),
        (["train", "--seed", "9" * 30], ["seed: expected less than 2^32"]),
        (["train", "--name", "a/b"], ["name: expected the name of one folder", "'a/b'", "--out"]),
        (["train", "--name", "latest"], ["and not 'latest'"]),
        (["train", "--prompts", "\udc80"], ["prompts: expected Unicode text"]),
        (["resume"], ["A run's folder. (required)", "mixtura resume --help"]),
        (["resume", "a", "b"], ["Unrecognized options: b"]),
        (["resume", "runs/none"], ["expected a run's folder, got 'runs/none', which does not exist"]),
        (["eval", "runs/none"], ["expected a run's folder"]),
        (["report", "runs/none"], ["expected a run's folder"]),
        (["generate", "runs/none"], ["expected a run's folder"]),
        (["generate"], ["(required)", "mixtura generate --help"]),
        (["recipes", "lm-tiny"], ["Unrecognized options: lm-tiny"]),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(tmp_path)
    refused(capsys, arguments, *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model__k": 9, "model__router": "topk"}, ["1 <= k <= num_experts, got k=9 with num_experts=4"]),
        ({"model__k": 2}, ["expected k=1 with router='switch', got k=2"]),
        ({"model__dim": 18}, ["expected heads that divide dim=18 into parts of even width, got heads=2"]),
        ({"model__hidden": 0}, ["expected hidden of at least 1"]),
        ({"model__router": "magic"}, ["expected a router among", "'magic'"]),
        ({"model__router_options": ("charm", 1)}, ["--model.router-options", "got charm"]),
        ({"model__router_options": ("jitter", "much")}, ["--model.router-options"]),
        ({"model__router_options": ("jitter", 2)}, ["expected 0 <= jitter < 1"]),
        ({"model__activation": "tan"}, ["expected an activation among", "'tan'"]),
        ({"model__capacity_factor": 0}, ["expected capacity_factor above 0"]),
        ({"model__context": 99}, ["expected no --model.context, got 99; set --data.seq-len"]),
        ({"model__vocab_size": 99}, ["expected no --model.vocab-size, got 99; set --data.vocab-size"]),
        ({"device": "abacus"}, ["expected a device of this machine, got 'abacus'", "--device cpu"]),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_text_is_read(tmp_path, capsys, options, parts):
    errors = refused(capsys, command(tmp_path, **options), *parts)
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["poem.txt"]


def _binary(folder):
    (folder / "poem.txt").write_bytes(b"\xff\xfe" * 900)


def _empty(folder):
    (folder / "poem.txt").write_text(" \n")


def _short(folder):
    (folder / "poem.txt").write_text("Two roads\n\ndiverged in a yellow wood")


def _gone(folder):
    (folder / "poem.txt").unlink()


def _folder(folder):
    _gone(folder)
    (folder / "poem.txt").mkdir()


def _bad_rows(folder):
    (folder / "rows.jsonl").write_text('{"text": "a"}\n{"tex')


def _mean(folder):
    (folder / "poem.txt").rename(folder / "mean.txt")


@pytest.mark.parametrize(
    ("spoil", "options", "part"),
    [
        (_binary, {}, "poem.txt"),
        (_empty, {}, "poem.txt"),
        (_short, {}, "tokens"),
        (_gone, {}, "poem.txt"),
        (_folder, {}, "poem.txt"),
        (_bad_rows, {"data__path": "rows.jsonl"}, "rows.jsonl"),
        (_mean, {"data__path": "mean.txt"}, "expected domains of any name but 'mean'"),
        (lambda _: None, {"data__batch_size": 5000}, "lower --data.batch_size"),
        (lambda _: None, {"data__seq_len": 5000, "data__val_tokens": 5000}, "lower --data.seq_len"),
        (lambda _: None, {"data__vocab_size": 12}, "data.vocab_size: expected 257"),
    ],
)
def test_text_that_cannot_be_trained_on_makes_no_run(tmp_path, monkeypatch, capsys, spoil, options, part):
    monkeypatch.chdir(tmp_path)
    arguments = command(tmp_path, **options)
    spoil(tmp_path)
    refused(capsys, arguments, part)
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_file_is_named(tmp_path, monkeypatch, capsys):
    arguments = command(tmp_path)
    real = Path.open

    def closed(path, *rest, **options):
        if path.name == "poem.txt":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    monkeypatch.setattr(Path, "open", closed)
    refused(capsys, arguments, "poem.txt", "Permission denied")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_exists_is_left_alone(finished_run, capsys):
    before = (finished_run / "metrics.jsonl").read_bytes()
    refused(capsys, command(finished_run.parents[1]), "exists; take another --name, or: mixtura resume")
    assert (finished_run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("which", ["abc", "999999", "-1", "..", "²", "step-000010", "best/..", ""])
@pytest.mark.parametrize("name", ["resume", "eval", "generate", "report"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(finished_run, capsys, name, which):
    arguments = [name, str(finished_run), f"--checkpoint={which}"]
    refused(capsys, arguments, "expected --checkpoint to be one of 10, 12, last, best", repr(which))


@pytest.mark.parametrize("name", ["resume", "eval", "generate", "report"])
def test_folders_that_are_no_runs_are_refused(tmp_path, run, capsys, name):
    refused(capsys, [name, str(tmp_path)], "expected a run's folder with a config.json", "which has none")
    refused(capsys, [name, str(run / "config.json")], "which is a file")
    for path in (run / "checkpoints").iterdir():
        path.rename(run / path.name)
    refused(capsys, [name, str(run)], "expected a checkpoint in", "got none", "start it anew")


def _change(**changes):
    def apply(config):
        for path, value in changes.items():
            *parents, last = path.split("__")
            inner = config
            for parent in parents:
                inner = inner[parent]
            inner[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_change(config__steps="many"), "steps: expected int, got 'many'"),
        (_change(config__steps=True), "steps: expected int, got True"),
        (_change(config__steps=0), "steps: expected at least 1, got 0"),
        (_change(config__precision="fp8"), "precision: expected"),
        (_change(config__prompts=[1]), "prompts: expected"),
        (_change(config__model=3), "expected the fields of GPTConfig, got 3"),
        (_change(config__model__dim=17), "expected heads that divide dim=17"),
        (_change(config__model__flux=1), "expected fields of GPTConfig, got flux"),
        (_change(config__model__losses={"z": "x"}), "losses: expected"),
        (_change(config__data__seq_len=None), "seq_len: expected int, got None"),
        (_change(config__optim__lr=-1.0), "optim.lr: expected more than 0"),
        (lambda config: config.pop("config"), "'config'"),
    ],
)
def test_a_damaged_configuration_is_told_in_one_line(run, capsys, change, part):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    refused(capsys, ["generate", str(run)], "expected a run's configuration in", "config.json", part)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\x00", b'"config"', b'{"config": []}'])
@pytest.mark.parametrize("name", ["resume", "eval", "report"])
def test_a_configuration_that_is_none_is_told_in_one_line(run, capsys, text, name):
    (run / "config.json").write_bytes(text)
    refused(capsys, [name, str(run)], "expected a run's configuration in", "restore the file")


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"garbage" * 99, None]
)
def test_a_damaged_checkpoint_names_another(run, finished_run, capsys, file, damage):
    path = run / "checkpoints" / "step-000012" / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    before = (run / "metrics.jsonl").read_bytes()
    errors = refused(capsys, ["resume", str(run)], "expected a whole checkpoint in", file)
    assert errors.endswith("); take another with --checkpoint 10\n")
    assert len(errors) < 400 + len(str(path))
    assert (run / "metrics.jsonl").read_bytes() == before
    assert main(["resume", str(run), "--checkpoint", "10"]) == 0
    assert rows(run) == rows(finished_run)
    assert checkpoints(run) == checkpoints(finished_run)


def test_damaged_metrics_are_not_cut_off(run, capsys):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:3], b'{"step\n', *lines[4:]]))
    before = (run / "metrics.jsonl").read_bytes()
    for which in ("12", "10"):
        arguments = ["resume", str(run), "--checkpoint", which]
        refused(capsys, arguments, "line 4 of", "repair that line, or move the file away")
    assert (run / "metrics.jsonl").read_bytes() == before
    assert checkpoints(run) == ["best", "step-000010", "step-000012"]


def test_an_error_shows_its_traceback_only_with_debug(capsys):
    assert main(["resume", "runs/none"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["resume", "--debug", "runs/none"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("mixtura: expected a run's folder")


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch):
    def broken(name):
        raise ValueError(f"expected no bug, got {name}")

    monkeypatch.setattr("mixtura.train.recipes.get_recipe", broken)
    with pytest.raises(ValueError, match="expected no bug"):
        main(["train"])


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("tyro", ["recipes"], "mixtura[train,plots]"),
        ("safetensors", ["train"], "mixtura[train]"),
        ("rich", ["train"], "mixtura[train]"),
        ("jinja2", ["train"], "mixtura[train,plots]"),
        ("plotly", ["train"], "mixtura[train,plots]"),
        ("tensorboard", ["train", "--tensorboard", "True"], "mixtura[tensorboard]"),
        ("tokenizers", ["train"], "mixtura[train]"),
        ("plotly", ["report"], "mixtura[train,plots]"),
        ("safetensors", ["generate"], "mixtura[train]"),
        ("jinja2", ["resume"], "mixtura[train,plots]"),
    ],
)
def test_a_missing_package_names_its_extra_before_anything_starts(
    tmp_path, run, monkeypatch, capsys, package, arguments, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    name, *options = arguments
    given = {"train": [*command(tmp_path), *options], "recipes": ["recipes"]}.get(name, [name, str(run), *options])
    refused(capsys, given, package if package != "tyro" else "command line", f"pip install '{extra}'")
    assert not (tmp_path / "runs").exists()


def test_without_numpy_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['numpy'] = None; from mixtura.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *command(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "mixtura: preparing text needs numpy; run: pip install 'mixtura[train]'\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for name in ("train", "resume", "eval", "predict", "generate", "report", "recipes", "convert"):
        assert f"\n  {name} " in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--help"], "--model.num-experts INT"),
        (["train", "lm-tiny", "--help"], "--model.num-experts INT"),
        (["train", "lm-tiny-dense", "--help"], "usage: mixtura train lm-tiny-dense"),
        (["resume", "--help"], "what came after it is dropped"),
        (["eval", "--help"], "--checkpoint"),
        (["predict", "--help"], "without labels, as CSV"),
        (["generate", "--help"], "--temperature FLOAT"),
        (["report", "--help"], "--checkpoint"),
        (["recipes", "--help"], "what they cost"),
        (["convert", "--help"], "--format STR"),
    ],
)
def test_every_command_has_help(capsys, arguments, part):
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert part in " ".join(shown.out.split())
    assert not shown.err


def test_recipes_are_listed_with_what_they_are(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert "lm-tiny\n  A small language model" in text
    assert "lm-tiny-dense\n  The dense twin" in text
    assert "Example" not in text


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


def test_options_reach_the_configuration():
    arguments = ["--steps", "7", "--model.router-options", "groups", "2", "jitter", "0.5", "--data.path", "a b.txt"]
    config = parse(LanguageConfig, arguments, prog="x", default=get_recipe("lm-tiny"))
    assert (config.steps, config.data.path) == (7, "a b.txt")
    assert config.model.router_options == {"groups": 2, "jitter": 0.5}
    assert type(config.model.router_options["groups"]) is int
    assert config.optim == get_recipe("lm-tiny").optim
    with pytest.raises(UserError, match="Unrecognized options"):
        parse(LanguageConfig, ["--nothing", "1"], prog="x")


def test_a_run_with_spaces_in_its_path(tmp_path, capsys):
    folder = tmp_path / "my runs"
    folder.mkdir()
    assert main(command(folder, name="first try", steps=5)) == 0
    run = folder / "runs" / "first try"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {run}/report.html"
    assert (folder / "runs" / "latest").resolve() == run.resolve()
    refused(capsys, command(folder, name="first try"), f"mixtura resume '{run}'")
    assert main(["eval", str(folder / "runs" / "latest")]) == 0


def test_eval_gives_the_losses_that_training_logged(finished_run, capsys):
    assert main(["eval", str(finished_run), "--checkpoint", "last"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    logged = rows(finished_run)[-1]["val_loss"]
    assert {name: float(nats) for name, nats, *_ in lines} == {name: round(nats, 4) for name, nats in logged.items()}
    assert float(lines[0][3]) == pytest.approx(float(lines[0][1]) / 0.6931, abs=1e-3)


@pytest.mark.filterwarnings("default:with k=1")
def test_a_warning_is_one_line_shown_once(tmp_path, capsys):
    assert main(command(tmp_path, model__router="topk", steps=2)) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("mixtura: warning: with k=1 a weight normalised over the chosen expert is always 1")
    assert errors.count("\n") == 1


def test_a_pipe_closed_early_is_no_error(finished_run):
    program = [sys.executable, "-m", "mixtura", "generate", str(finished_run), "--prompt", "x" * 100_000]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
