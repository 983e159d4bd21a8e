import json

import torch

from mixtura.train.config import TrainConfig
from mixtura.train.data.tokens import prepare
from mixtura.train.inspect import load_model
from mixtura.train.observations import generated_texts, has_finite_weights, observe
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


def test_observing_leaves_the_model_as_it_was(finished_run):
    model, config = load_model(Run(finished_run), checkpoint="last")
    corpus = prepare(config.data)
    model.train()
    before = torch.get_rng_state()
    seen = observe(model, corpus, config=config)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == json.loads((finished_run / "observations.json").read_text())


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
    seen = observe(model, prepare(config.data), config=config)
    assert seen["generated"] == []
    assert isinstance(config, TrainConfig)
