"""What all configs have in common."""

import pytest

from mixtura.errors import UserError
from mixtura.hub.library import make_config
from mixtura.hub.translate import activation, attention, causal, moe_recipe, shared_values
from tests.hub.tiny import SIZES


def test_what_a_family_has_in_another_way_goes_before_what_the_config_says():
    config = make_config("llama", SIZES)
    heads = attention(config, {"bias": True, "kv_heads": 4})
    assert (heads.heads, heads.kv_heads, heads.head_dim, heads.bias) == (4, 4, 4, True)
    assert attention(config).kv_heads == 2
    assert (causal(config, heads).hidden, causal(config, heads, {"hidden": 7}).hidden) == (12, 7)
    mixtral = make_config("mixtral", SIZES)
    assert moe_recipe(mixtral, {"bias": True}, hidden=5, num_experts=4).bias


def test_values_come_back():
    config = make_config("mistral", {**SIZES, "hidden_act": "gelu_pytorch_tanh", "eos_token_id": 7})
    values = shared_values(causal(config, attention(config)))
    for key in ("vocab_size", "hidden_act", "eos_token_id", "num_key_value_heads", "rms_norm_eps", "head_dim"):
        assert values[key] == getattr(config, key), key


def test_an_activation_that_no_gated_mlp_has():
    with pytest.raises(UserError, match="expected hidden_act among silu, gelu, gelu_pytorch_tanh, got 'tanh'"):
        activation(make_config("llama", {"hidden_act": "tanh"}))
