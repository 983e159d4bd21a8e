import torch

from mixtura.train.data.tokens import prepare
from mixtura.train.inspect import load_model
from mixtura.train.run import Run
from mixtura.train.tasks.texts import generated_texts, has_finite_weights, observe


def test_every_prompt_has_a_text_of_its_own(finished_run):
    model, config = load_model(Run(finished_run), checkpoint="last")
    tokenizer = prepare(config.data).tokenizer
    texts = generated_texts(model, tokenizer, ("", "", "é"), seed=0, max_tokens=20)
    assert [text["prompt"] for text in texts] == ["", "", "é"]
    assert texts[0]["text"] != texts[1]["text"]


def test_a_model_that_diverged_writes_nothing(finished_run):
    model, config = load_model(Run(finished_run), checkpoint="last")
    assert has_finite_weights(model)
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    assert not has_finite_weights(model)
    assert observe(model, config.prepare())["generated"] == []
