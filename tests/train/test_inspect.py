import pytest

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.inspect import evaluate_run, generate_text, load_model, rewrite_report
from mixtura.train.run import Run
from tests.train.tiny import rows


def test_the_prompt_comes_first_and_text_comes_in_pieces(finished_run, capsys):
    pieces = list(generate_text(finished_run, prompt="def ", max_tokens=30))
    assert pieces[0] == "def "
    assert len(pieces) > 10
    assert main(["generate", str(finished_run), "--prompt", "def ", "--max-tokens", "30"]) == 0
    assert capsys.readouterr().out == "".join(pieces) + "\n"


@pytest.mark.parametrize("prompt", ["", "naïve 日本 🦊", "x" * 100, "<|end|>", "--debugging"])
def test_any_prompt_is_repeated_as_it_is(finished_run, capsys, prompt):
    arguments = ["generate", str(finished_run), f"--prompt={prompt}", "--max-tokens", "20"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert all(text.startswith(prompt) for text in texts)
    assert texts[0] == texts[1] != texts[2]


def test_temperature_zero_and_one_choice_need_no_luck(finished_run):
    greedy = [
        "".join(generate_text(finished_run, prompt="the", max_tokens=20, seed=seed, **options))
        for seed in (1, 2)
        for options in ({"temperature": 0.0}, {"top_k": 1})
    ]
    assert len(set(greedy)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens of at least 1"),
        ({"top_k": -1}, "top_k of at least 0"),
        ({"temperature": -1.0}, "temperature of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature of at least 0, got nan"),
        ({"seed": -1}, "expected a seed from 0"),
        ({"seed": 1 << 70}, "expected a seed from 0"),
        ({"prompt": "\udc80"}, "expected Unicode text"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(finished_run, options, message):
    with pytest.raises(UserError, match=message):
        next(generate_text(finished_run, **({"prompt": "a"} | options)))


def test_a_checkpoint_has_the_losses_that_were_logged(finished_run):
    table = rows(finished_run)
    for checkpoint, row in (("last", table[-1]), ("10", table[9]), ("best", table[-1])):
        evaluation, units = evaluate_run(finished_run, checkpoint=checkpoint)
        assert evaluation.with_mean() == row["val_loss"]
        assert units.loss == "nats/byte"


def test_the_model_comes_ready_to_use(finished_run):
    model, config = load_model(Run(finished_run), checkpoint="best")
    assert not model.training
    assert model.config == config.model


def test_the_report_is_written_again(run, capsys):
    for name in ("report.html", "observations.json"):
        (run / name).unlink()
    assert rewrite_report(run) == run / "report.html"
    assert (run / "observations.json").exists()
    assert main(["report", str(run), "--checkpoint", "10"]) == 0
    assert capsys.readouterr().out == f"report: {run}/report.html\n"


def test_generating_needs_no_corpus(run, capsys):
    (run.parent / "gone").mkdir()
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace("poem.txt", "gone.txt"))
    assert main(["generate", str(run), "--max-tokens", "3"]) == 0
    assert main(["eval", str(run)]) == 2
    assert "gone.txt" in capsys.readouterr().err


def test_a_language_model_predicts_no_labels(finished_run, capsys):
    assert main(["predict", str(finished_run), "new.csv"]) == 2
    assert "expected a run that predicts labels, got one of kind 'language'" in capsys.readouterr().err
