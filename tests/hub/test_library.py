"""The border to transformers: frequencies as its models have them, and clear words where it is missing or refuses."""

import sys

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mixtura.errors import UserError
from mixtura.hub import library
from tests.hub.tiny import LLAMA3, YARN


@pytest.mark.parametrize(
    "rule", [{"rope_type": "default", "rope_theta": 5e3}, YARN, LLAMA3, {**YARN, "rope_type": "linear"}]
)
def test_frequencies_and_scale_are_theirs(rule):
    config = library.make_config("llama", {"hidden_size": 32, "num_attention_heads": 2, "rope_parameters": rule})
    theirs = LlamaRotaryEmbedding(config)
    ours = library.rotary(config)
    x = torch.zeros(1, 7, 16)
    cos, sin = ours.tables(7, like=x)
    their_cos, their_sin = theirs(x, torch.arange(7).unsqueeze(0))
    torch.testing.assert_close(cos, their_cos[0, :, :8], rtol=0, atol=0)
    torch.testing.assert_close(sin, their_sin[0, :, :8], rtol=0, atol=0)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"expected transformers of at least 5\.0.*mixtura\[hub\]"):
        library.make_config("llama", {})


def test_a_config_that_transformers_refuses(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such family"}')
    with pytest.raises(UserError, match=r"expected a config\.json that transformers reads"):
        library.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"expected a config\.json that transformers reads"):
        library.read_config(tmp_path)


def test_a_file_that_is_no_gguf(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUFnonsense")
    with pytest.raises(UserError, match="expected a GGUF file that transformers reads"):
        library.read_gguf(file)
