"""Models of transformers, small and random: equal at step 0, and they train."""

import pytest
import torch
import transformers

import mixtura as mx

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 31}
IDS = torch.arange(24).view(2, 12) % 31
MODELS = {
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=1)),
        "*.mlp",
        "model.layers.1.mlp",
        "swiglu",
    ),
    "qwen3": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8)),
        "*.mlp",
        "model.layers.1.mlp",
        "swiglu",
    ),
    "gemma": (
        lambda: transformers.GemmaForCausalLM(
            transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8, pad_token_id=None)
        ),
        "*.mlp",
        "model.layers.1.mlp",
        "geglu_tanh",
    ),
    "bert": (
        lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
        "*.layer.*",
        "encoder.layer.1.intermediate",
        "gelu",
    ),
    "t5": (
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        ),
        "*.DenseReluDense",
        "encoder.block.1.layer.1.DenseReluDense",
        "relu",
    ),
}


@pytest.mark.parametrize(("make", "match", "place", "activation"), MODELS.values(), ids=MODELS)
def test_a_hugging_face_model_is_equal_at_step_0_and_trains(make, match, place, activation):
    model = make().eval()
    expected = model(IDS)[0]
    mx.moefy(model, match, num_experts=4, k=2, dropout=0.1 if activation == "relu" else None)
    layer = model.get_submodule(place)
    assert isinstance(layer, mx.MoE)
    assert layer.experts.activation == activation
    torch.testing.assert_close(model(IDS)[0], expected, rtol=0, atol=2e-6)
    with mx.record(model.train()) as log:
        model(IDS)[0].square().mean().backward()
    assert log[place][0].counts_E().sum() == 2 * IDS.numel()
    assert layer.router.weight.grad.any()
