import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.models.count import ParameterCount
from mixtura.train import files
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.run import Run, cpu_name, create_run, open_run, point_link
from mixtura.train.tasks.language import LanguageConfig
from tests.train.test_checkpoint import full_from
from tests.train.tiny import command


def make(config):
    return create_run(
        config,
        parameters=ParameterCount(total=7, active=5),
        save=lambda folder: TextTokenizer.train([], vocab_size=257).save(folder / "tokenizer.json"),
        device=torch.device("cpu"),
    )


@pytest.fixture
def config(tmp_path):
    return LanguageConfig(out=str(tmp_path / "my runs"), name="one", steps=7, prompts=("ä", ""))


def test_a_new_run_tells_all_it_depends_on(config):
    run = make(config)
    assert run.read_config() == config
    facts = json.loads((run.folder / "config.json").read_text())
    assert facts["parameters"] == {"total": 7, "active": 5}
    assert facts["machine"]["device"] == "cpu"
    assert facts["machine"]["cpu"] == cpu_name()
    assert TextTokenizer.load(run.tokenizer).vocab_size == 257


def test_latest_is_the_newest_and_a_run_opened_by_it_stays_itself(config, tmp_path):
    make(config)
    opened = open_run(tmp_path / "my runs" / "latest")
    newer = make(replace(config, name="two"))
    assert opened.folder.name == "one"
    assert open_run(str(tmp_path / "my runs" / "latest")) == newer
    assert opened.advice == f"then: mixtura resume '{opened.folder}'"


def test_runs_without_a_name_have_recipe_and_time(config):
    assert make(replace(config, name="", recipe="lm-tiny")).folder.name.startswith("lm-tiny-20")
    assert make(replace(config, name="")).folder.name.startswith("language-20")


def test_a_folder_that_exists_is_never_touched(config):
    run = make(config)
    (run.folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists; take another --name, or: mixtura resume '"):
        make(config)
    assert (run.folder / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("part", ["config.json", "latest"])
def test_a_run_that_cannot_be_made_leaves_nothing(config, tmp_path, monkeypatch, part):
    earlier = make(replace(config, name="earlier"))
    if part == "latest":
        (tmp_path / "my runs" / "latest").unlink()
        (tmp_path / "my runs" / "latest" / "of mine").mkdir(parents=True)
    else:
        full_from(monkeypatch, 1, "my runs")
    with pytest.raises(UserError, match=rf"my runs/one for {part}|{part}' in .*my runs"):
        make(config)
    assert sorted(path.name for path in (tmp_path / "my runs").iterdir()) == ["earlier", "latest"]
    if part != "latest":
        assert open_run(tmp_path / "my runs" / "latest") == earlier


def test_a_place_for_runs_that_is_none(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the run's folder in .*file.*choose another --out"):
        make(replace(config, out=str(tmp_path / "file")))


def test_a_link_moves_in_one_step(tmp_path):
    for target in ("a", "b"):
        point_link(tmp_path / "link", target)
        assert (tmp_path / "link").readlink() == Path(target)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_configuration_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*config\.json: Is a directory"):
        Run(tmp_path).read_config()


@pytest.mark.parametrize("part", ["cache", "tiny"])
def test_a_full_disk_at_the_start_leaves_no_run(tmp_path, monkeypatch, capsys, part):
    arguments = command(tmp_path)
    full_from(monkeypatch, 1, f"{tmp_path.name}/{'cache' if part == 'cache' else 'runs/tiny'}")
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"no space left in {tmp_path}/{'cache' if part == 'cache' else 'runs'}" in errors
    assert not (tmp_path / "runs" / "tiny").exists()
    assert not (tmp_path / "runs" / "latest").is_symlink()
    monkeypatch.undo()
    assert files.ELSEWHERE in errors
