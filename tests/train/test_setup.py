import sys

import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.gpt import GPTConfig
from mixtura.train.config import BalanceConfig
from mixtura.train.setup import build_model, check_start, require, require_for_training
from mixtura.train.tasks.language import LanguageConfig


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    require("rich", "plotly")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r"package plotly, .*pip install 'mixtura\[train,plots\]'"):
        require("rich", "plotly")
    with pytest.raises(UserError, match="plotly"):
        require_for_training(LanguageConfig())


def test_tensorboard_is_needed_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    require_for_training(LanguageConfig())
    with pytest.raises(UserError, match=r"mixtura\[tensorboard\]"):
        require_for_training(LanguageConfig(tensorboard=True))


def test_checking_draws_no_random_numbers():
    before = torch.get_rng_state()
    check_start(LanguageConfig())
    assert torch.equal(torch.get_rng_state(), before)
    assert build_model(LanguageConfig()).embedding.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (GPTConfig(router="oracle"), "model: expected a router among"),
        (GPTConfig(router="topk", k=17), "model: expected 1 <= k <= num_experts, got k=17 with num_experts=16"),
        (GPTConfig(losses={"zeal": 1.0}), "model: expected losses among"),
        (
            GPTConfig(router_options={"wings": 2}),
            "expected the router's own --model.router-options, got: .*wings",
        ),
        (GPTConfig(context=64), "expected no --model.context, got 64; set --data.seq-len instead"),
        (GPTConfig(vocab_size=300), "expected no --model.vocab-size, got 300; set --data.vocab-size instead"),
    ],
)
def test_a_model_that_cannot_be_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        check_start(LanguageConfig(model=model))


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        (BalanceConfig(target=0.5), "balance: expected a target imbalance .* above 1, got 0.5"),
        (BalanceConfig(target=1.5, rate=0), "balance: expected a rate above 0, got 0"),
        (BalanceConfig(target=1.5, loss="gshard"), "balance: expected a model with layers whose losses hold 'gshard'"),
    ],
)
def test_a_controller_that_cannot_be_is_refused(balance, message):
    with pytest.raises(UserError, match=message):
        check_start(LanguageConfig(balance=balance))
