"""transformers' MoE blocks and the same layer of ours: one function per family makes the pair, with equal weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

import mixtura as mx


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths and numbers of one small block."""

    dim: int
    hidden: int
    num_experts: int
    k: int
    renormalize: bool = False
    groups: int = 1
    group_k: int = 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Their block, our layer, and which of their parameters, in our layout, each of ours is."""

    theirs: nn.Module
    ours: mx.MoE
    same: dict[str, Callable[[nn.Module], Tensor]]  # our name -> their value (or gradient), in our layout

    def copy_weights(self) -> "Pair":
        parameters = dict(self.ours.named_parameters())
        with torch.no_grad():
            for value in self.theirs.parameters():
                value.normal_(std=0.4)
            for name, view in self.same.items():
                parameters[name].copy_(view(lambda p: p))
        assert set(parameters) == set(self.same)
        return self


def _at(module: nn.Module, path: str, *, layout: Callable[[Tensor], Tensor] = lambda t: t):
    """A reader of one parameter: given what to read of it (itself, its gradient), the tensor in our layout."""
    parameter = module.get_parameter(path)
    return lambda read: layout(read(parameter))


def _pair(theirs: nn.Module, ours: mx.MoE, **same: str) -> Pair:
    plain = {"experts.up_proj": "experts.gate_up_proj", "experts.down_proj": "experts.down_proj"}
    names = {**plain, **{ours_name.replace("__", "."): path for ours_name, path in same.items()}}
    return Pair(theirs=theirs, ours=ours, same={name: _at(theirs, path) for name, path in names.items()})


def _softmax_first(s: Sizes, *, renormalize: bool, **options) -> mx.MoE:
    return mx.MoEConfig(
        dim=s.dim,
        hidden=s.hidden,
        num_experts=s.num_experts,
        k=s.k,
        router_options={"order": "softmax_topk", "renormalize": renormalize},
        **options,
    ).build()


def mixtral(s: Sizes) -> Pair:
    config = MixtralConfig(
        hidden_size=s.dim, intermediate_size=s.hidden, num_local_experts=s.num_experts, num_experts_per_tok=s.k
    )
    ours = mx.MoEConfig(dim=s.dim, hidden=s.hidden, num_experts=s.num_experts, k=s.k).build()
    return _pair(MixtralSparseMoeBlock(config), ours, router__weight="gate.weight")


def olmoe(s: Sizes) -> Pair:
    config = OlmoeConfig(
        hidden_size=s.dim,
        intermediate_size=s.hidden,
        num_experts=s.num_experts,
        num_experts_per_tok=s.k,
        norm_topk_prob=s.renormalize,
    )
    return _pair(
        OlmoeSparseMoeBlock(config), _softmax_first(s, renormalize=s.renormalize), router__weight="gate.weight"
    )


def qwen3_moe(s: Sizes) -> Pair:
    config = Qwen3MoeConfig(
        hidden_size=s.dim,
        moe_intermediate_size=s.hidden,
        num_experts=s.num_experts,
        num_experts_per_tok=s.k,
        norm_topk_prob=s.renormalize,
    )
    return _pair(
        Qwen3MoeSparseMoeBlock(config), _softmax_first(s, renormalize=s.renormalize), router__weight="gate.weight"
    )


def _shared(path: str, theirs: nn.Module) -> dict[str, Callable[[nn.Module], Tensor]]:
    gate, up = (theirs.get_parameter(f"{path}.{name}_proj.weight") for name in ("gate", "up"))
    return {
        "shared.up_proj.weight": lambda read: torch.cat([read(gate), read(up)]),
        "shared.down_proj.weight": _at(theirs, f"{path}.down_proj.weight"),
    }


def qwen2_moe(s: Sizes) -> Pair:
    config = Qwen2MoeConfig(
        hidden_size=s.dim,
        moe_intermediate_size=s.hidden,
        shared_expert_intermediate_size=s.hidden + 2,
        num_experts=s.num_experts,
        num_experts_per_tok=s.k,
        norm_topk_prob=s.renormalize,
    )
    theirs = Qwen2MoeSparseMoeBlock(config)
    ours = _softmax_first(s, renormalize=s.renormalize, shared_hidden=s.hidden + 2, shared_gate="sigmoid")
    pair = _pair(theirs, ours, router__weight="gate.weight", shared_gate__weight="shared_expert_gate.weight")
    return Pair(theirs=theirs, ours=ours, same={**pair.same, **_shared("shared_expert", theirs)})


def deepseek_v3(s: Sizes) -> Pair:
    config = DeepseekV3Config(
        hidden_size=s.dim,
        moe_intermediate_size=s.hidden,
        n_routed_experts=s.num_experts,
        num_experts_per_tok=s.k,
        n_shared_experts=2,
        n_group=s.groups,
        topk_group=s.group_k,
        norm_topk_prob=s.renormalize,
        routed_scaling_factor=1.7,
    )
    theirs = DeepseekV3MoE(config)
    options = {"groups": s.groups, "group_k": s.group_k, "renormalize": s.renormalize, "scale": 1.7}
    ours = mx.MoEConfig(
        dim=s.dim,
        hidden=s.hidden,
        num_experts=s.num_experts,
        k=s.k,
        router="sigmoid_bias",
        router_options=options,
        shared_hidden=2 * s.hidden,
    ).build()
    bias = torch.randn(s.num_experts) * 0.2
    theirs.gate.e_score_correction_bias.copy_(bias)
    ours.router.bias.copy_(bias)
    pair = _pair(theirs, ours, router__weight="gate.weight")
    return Pair(theirs=theirs, ours=ours, same={**pair.same, **_shared("shared_experts", theirs)})


def gpt_oss(s: Sizes) -> Pair:
    config = GptOssConfig(
        hidden_size=s.dim, intermediate_size=s.hidden, num_local_experts=s.num_experts, num_experts_per_tok=s.k
    )
    theirs = GptOssMLP(config)
    ours = mx.MoE(
        router=mx.routers.TopK(s.dim, s.num_experts, s.k, gate=nn.Linear(s.dim, s.num_experts)),
        experts=mx.GroupedMLP(
            num_experts=s.num_experts, dim=s.dim, hidden=s.hidden, activation="clamped_swiglu", bias=True
        ),
    )

    def halves_first(interleaved: Tensor) -> Tensor:
        return torch.cat([interleaved[..., ::2], interleaved[..., 1::2]], dim=-1)

    same = {
        "router.gate.weight": _at(theirs, "router.weight"),
        "router.gate.bias": _at(theirs, "router.bias"),
        "experts.up_proj": _at(theirs, "experts.gate_up_proj", layout=lambda t: halves_first(t).mT),
        "experts.up_bias": _at(theirs, "experts.gate_up_proj_bias", layout=halves_first),
        "experts.down_proj": _at(theirs, "experts.down_proj", layout=lambda t: t.mT),
        "experts.down_bias": _at(theirs, "experts.down_proj_bias"),
    }
    return Pair(theirs=theirs, ours=ours, same=same)


FAMILIES: dict[str, Callable[[Sizes], Pair]] = {
    "Mixtral": mixtral,
    "OLMoE": olmoe,
    "Qwen2-MoE": qwen2_moe,
    "Qwen3-MoE": qwen3_moe,
    "DeepSeek-V3": deepseek_v3,
    "gpt-oss": gpt_oss,
}
