"""Tiny random models of every family that transformers writes and we read."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.hub_families import fill

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 40,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "num_key_value_heads": 4,
    "routed_scaling_factor": 1.7,
    "num_nextn_predict_layers": 0,
}
V3_ONLY = ("n_group", "topk_group", "routed_scaling_factor", "num_nextn_predict_layers")
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
SIGMOID = {key: value for key, value in DEEPSEEK.items() if key not in LATENT} | {"num_key_value_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {"rope_parameters": LLAMA3}),
    "Llama with biases, tied": ("llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 6}),
    "Mistral": ("mistral", {"sliding_window": 5}),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "Qwen3": ("qwen3", {"head_dim": 8}),
    "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "Mixtral, window": ("mixtral", {"num_local_experts": 4, "sliding_window": 3}),
    "Qwen2-MoE": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 10, "decoder_sparse_step": 2}),
    "Qwen2-MoE, renormalised": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 10, "norm_topk_prob": True}),
    "Qwen3-MoE": ("qwen3_moe", {**QWEN, "head_dim": 8, "mlp_only_layers": [0], "norm_topk_prob": True}),
    "OLMoE": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 2}),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK),
    "DeepSeek-V3, YaRN": (
        "deepseek_v3",
        {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "DeepSeek-V3, halves": ("deepseek_v3", {**DEEPSEEK, "rope_interleave": False, "attention_bias": True}),
    "DeepSeek-V2": (
        "deepseek_v2",
        {**{k: v for k, v in DEEPSEEK.items() if k not in V3_ONLY}, "rope_parameters": {**YARN, "mscale": 1.0}},
    ),
    "GLM-4-MoE": ("glm4_moe", {**SIGMOID, "head_dim": 8, "use_qk_norm": True, "attention_bias": True}),
    "GLM-4-MoE, plain": ("glm4_moe", {**SIGMOID, "n_group": 1, "topk_group": 1}),
    "Granite-MoE": (
        "granitemoe",
        {
            "num_local_experts": 4,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 12.0,
            "logits_scaling": 6.0,
            "residual_multiplier": 0.22,
        },
    ),
    "Granite-MoE, biases": (
        "granitemoe",
        {"num_local_experts": 4, "attention_bias": True, "attention_multiplier": 0.5},
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 3,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
}


def build(name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A model of transformers with random weights, norms and biases too."""
    kind, values = MODELS[name]
    config = AutoConfig.for_model(kind, **{**SIZES, **values, **changes})
    return fill(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), std=0.3).to(dtype).eval()


def stored(folder: Path, name: str, **options: Any) -> tuple[Path, nn.Module]:
    """Such a model in a folder, and the model."""
    shards = {"max_shard_size": options.pop("max_shard_size", "1GB")}
    model = build(name, **options)
    model.save_pretrained(folder, **shards)
    return folder, model


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Of either kind of model."""
    out = model(ids)
    return getattr(out, "logits", out)


def reread(folder: Path) -> nn.Module:
    """What transformers makes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
