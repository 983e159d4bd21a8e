"""A dense GGUF file, as llama.cpp has it, read through transformers."""

import pytest
import torch

import mixtura as mx
from mixtura.errors import UserError
from tests.hub.tiny import build, logits, reread
from tests.kernels.cases import error

gguf = pytest.importorskip("gguf", reason="the package gguf, which transformers needs to read such files, is missing")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(model):
    """Their names, with the rows of queries and keys in llama.cpp's order: rotated pairs are neighbours."""
    for key, value in model.state_dict().items():
        name = key.removesuffix(".weight")
        if name not in ENDS:
            block, name = name.removeprefix("model.layers.").split(".", 1)
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                value = value.unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten(0, 2)  # heads of width 4
            name = f"blk.{block}.{NAMES[name]}"
        yield f"{ENDS.get(name, name)}.weight", value.contiguous().numpy()


@pytest.fixture
def llama(tmp_path):
    """The file and the model that is in it."""
    model = build("Llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(3)
    writer.add_feed_forward_length(12)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(40)
    for name, value in tensors(model):
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", model


def test_it_is_read_and_can_be_written_as_safetensors(llama, tmp_path):
    file, theirs = llama
    ids = torch.arange(34).view(2, 17) % 40
    assert error(logits(mx.hub.load(file), ids), logits(theirs, ids)) < 1e-5
    assert mx.hub.convert(file, tmp_path / "new", format="llama") < 1e-5
    assert error(logits(reread(tmp_path / "new"), ids), logits(theirs, ids)) < 1e-5


def test_a_truncated_one(llama):
    file, _ = llama
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UserError, match="expected a GGUF file that transformers reads"):
        mx.hub.load(file)
