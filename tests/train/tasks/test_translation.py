import io
import json
import math

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.models.translator import TranslatorConfig
from mixtura.train.data.parallel import ParallelConfig
from mixtura.train.tasks.translation import TranslationConfig
from tests.train.parallel_texts import command, write_files
from tests.train.tiny import TIMES


def metrics(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    assert main(command(folder, paths=write_files(folder))) == 0
    return folder / "runs" / "tiny"


def test_it_learns_both_directions(run):
    rows = metrics(run)
    assert set(rows[-1]["val_loss"]) == {"en-es", "es-en", "mean"}
    assert rows[-1]["val_loss"]["mean"] < 0.65 * rows[49]["val_loss"]["mean"] < 1.5
    assert (run / "languages.txt").read_text().split() == ["en", "es"]


def test_the_report_shows_translations_scores_and_experts_by_language(run):
    seen = json.loads((run / "observations.json").read_text())
    assert seen["domains"] == ["en-es", "es-en"]
    panels = {panel["title"]: panel for panel in seen["panels"]}
    assert list(panels) == [
        "BLEU and chrF",
        "Translations",
        "Experts and languages",
        "Experts by target language, encoder.0.feed_forward",
        "Experts by target language, decoder.0.feed_forward",
    ]
    assert [row[0] for row in panels["BLEU and chrF"]["rows"]] == ["en-es", "es-en"]
    assert all(0 <= row[1] <= 100 and row[3] == 20 for row in panels["BLEU and chrF"]["rows"])
    assert "BLEU nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in panels["BLEU and chrF"]["note"]
    assert len(panels["Translations"]["rows"]) == 8
    heat = panels["Experts by target language, decoder.0.feed_forward"]
    assert heat["rows"] == ["en", "es"]
    assert [sum(row) for row in heat["values"]] == pytest.approx([1, 1], abs=1e-3)
    page = (run / "report.html").read_text()
    assert "Experts by target language" in page
    assert "BLEU and chrF" in page


def test_a_run_goes_on_to_the_same_numbers(run, capsys):
    before = metrics(run)
    assert main(["resume", str(run), "--checkpoint", "100"]) == 0
    assert metrics(run) == before
    assert main(["eval", str(run)]) == 0
    assert "nats/token" in capsys.readouterr().out


def test_lines_are_translated_as_they_come(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one two\n\nthree\n"))
    assert main(["translate", str(run), "--to", "es", "--beam", "2"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[1] == ""
    assert len(lines) == 4
    assert set(" ".join(lines).split()) <= {"uno", "dos", "tres", "cuatro", "cinco", "seis"}


@pytest.mark.parametrize(
    ("arguments", "text", "parts"),
    [
        (["--to", "fr"], "one", ["expected a language among en, es, got 'fr'"]),
        ([], "one", ["expected --to with a language among en, es, got none"]),
        (["--to", "es", "--beam", "0"], "one", ["expected a beam of at least 1"]),
        (["--to", "es"], "one\n\ntw\udcf1o", ["line 3: expected Unicode text, got half of a surrogate pair at 2"]),
        (["--to", "es"], f"one\n{'one ' * 40}", ["line 2: expected at most 24 tokens, got"]),
    ],
)
def test_what_cannot_be_translated_is_named(run, capsys, monkeypatch, arguments, text, parts):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["translate", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts)


def test_other_runs_are_none_of_a_translator(run, capsys):
    assert main(["generate", str(run), "--prompt", "a"]) == 2
    assert "expected a run of a language model, got" in capsys.readouterr().err


def test_it_goes_on_on_other_texts(run, tmp_path, capsys):
    paths = write_files(tmp_path, count=80)
    options = ["--data.source", str(paths[0]), "--data.target", str(paths[1]), "--steps", "4", "--eval-interval", "2"]
    where = ["--out", str(tmp_path / "runs"), "--name", "fine"]
    assert (
        main(["finetune", str(run), *options, "--checkpoint-interval", "2", "--data.val-fraction", "0.3", *where]) == 0
    )
    assert metrics(tmp_path / "runs/fine")[-1]["val_loss"]["mean"] < 2 * metrics(run)[-1]["val_loss"]["mean"]


def test_the_held_out_loss_is_that_of_all_tokens_whatever_the_batches(tmp_path):
    sources = write_files(tmp_path)
    losses = []
    for tokens in (60, 5000):
        data = ParallelConfig(
            source=(str(sources[0]),), target=(str(sources[1]),), vocab_size=257, max_tokens=40, batch_tokens=tokens
        )
        task = TranslationConfig(data=data, model=TranslatorConfig(dim=16, heads=2, hidden=16, num_experts=0)).prepare()
        torch.manual_seed(0)
        model = task.config.build_model().eval()
        with torch.no_grad():
            losses.append(task.evaluate(model).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0]["en-es"] == pytest.approx(math.log(259), rel=0.05)


def test_a_model_that_diverged_still_gets_its_report(run):
    task = TranslationConfig(
        data=ParallelConfig(
            source=(str(run.parents[1] / "numbers.en"),),
            target=(str(run.parents[1] / "numbers.es"),),
            vocab_size=257,
            max_tokens=40,
        )
    ).prepare()
    model = task.config.build_model().eval()
    model.decoder_norm.weight.data.fill_(torch.nan)
    assert task.observe(model)["panels"][0]["title"] == "Experts and languages"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing": 1.0}, "smoothing: expected at least 0 and less than 1, got 1.0"),
        ({"beam": 0}, "beam: expected at least 1, got 0"),
        ({"alpha": -1.0}, "alpha: expected 0 to 10, got -1.0"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        TranslationConfig(**change)


def test_sizes_that_belong_to_the_data_are_refused():
    with pytest.raises(UserError, match=r"expected no --model.context, got 9; it comes from --data.max-tokens"):
        TranslationConfig(model=TranslatorConfig(context=9)).check()
