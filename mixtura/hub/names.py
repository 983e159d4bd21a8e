"""How the families name their tensors, as pairs from which both directions follow: rules to read and rules to write.

`#` stands for a block's number, `*` for an expert's. Where one of our tensors holds two of theirs one above the other
(gate and up), a pair says which half it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mixtura.kernels.activations import unweave, weave
from mixtura.mapping import Rule


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One of their tensors and where it stands in ours.

    Attributes:
        theirs: its name in a checkpoint.
        ours: the name of the tensor that it is, or is a part of.
        half: 0, the upper, or 1, the lower half of our rows; None: all of them.
        to_ours: what makes it ours; None: nothing.
        to_theirs: the inverse.

    Example:
        >>> pair = Pair(theirs="layers.#.w.*", ours="blocks.#.w", half=1)
        >>> pair.reading().replacement, pair.writing().replacement
        ('blocks.\\\\1.w[\\\\2:1/2]', 'layers.\\\\1.w.{}')
    """

    theirs: str
    ours: str
    half: int | None = None
    to_ours: Callable[[Tensor], Tensor] | None = None
    to_theirs: Callable[[Tensor], Tensor] | None = None

    def reading(self) -> Rule:
        """The rule from theirs to ours."""
        expert = r"\2" if "*" in self.theirs else ""
        place = expert + ("" if self.half is None else f":{self.half}/2")
        return Rule(_pattern(self.theirs), _numbered(self.ours) + (f"[{place}]" if place else ""), self.to_ours)

    def writing(self) -> Rule:
        """The rule from ours to theirs."""
        half, stacked = self.half, "*" in self.theirs

        def cut(tensor: Tensor) -> Tensor:
            assert half is not None
            return tensor.chunk(2, dim=1 if stacked else 0)[half]

        transform = self.to_theirs if half is None else cut
        return Rule(_pattern(self.ours), _numbered(self.theirs).replace("*", "{}"), transform)


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", r"(\d+)")


def _numbered(name: str) -> str:
    return name.replace("#", r"\1")


LAYER, BLOCK = "model.layers.#.", "blocks.#."


def _same(**names: str) -> list[Pair]:
    """Tensors of one block that are the same in both: ours -> theirs, both with `__` for a dot."""
    pairs = ((ours.replace("__", "."), theirs) for ours, theirs in names.items())
    return [Pair(theirs=f"{LAYER}{theirs}.weight", ours=f"{BLOCK}{ours}.weight") for ours, theirs in pairs]


def _gated(theirs: str, ours: str) -> list[Pair]:
    """An MLP whose gate and up matrices stand apart in theirs."""
    return [
        Pair(theirs=f"{LAYER}{theirs}.gate_proj.weight", ours=f"{BLOCK}{ours}.up_proj.weight", half=0),
        Pair(theirs=f"{LAYER}{theirs}.up_proj.weight", ours=f"{BLOCK}{ours}.up_proj.weight", half=1),
        Pair(theirs=f"{LAYER}{theirs}.down_proj.weight", ours=f"{BLOCK}{ours}.down_proj.weight"),
    ]


def _experts(theirs: str, *, gate: str, up: str, down: str) -> list[Pair]:
    """Experts that stand one by one in theirs."""
    ours = f"{BLOCK}feed_forward.experts."
    return [
        Pair(theirs=f"{LAYER}{theirs}.*.{gate}.weight", ours=f"{ours}up_proj", half=0),
        Pair(theirs=f"{LAYER}{theirs}.*.{up}.weight", ours=f"{ours}up_proj", half=1),
        Pair(theirs=f"{LAYER}{theirs}.*.{down}.weight", ours=f"{ours}down_proj"),
    ]


def _biases(**names: str) -> list[Pair]:
    return [
        Pair(theirs=pair.theirs.replace(".weight", ".bias"), ours=pair.ours.replace(".weight", ".bias"))
        for pair in _same(**names)
    ]


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.mT


ENDS = [
    Pair(theirs="model.embed_tokens.weight", ours="embedding.weight"),
    Pair(theirs="model.norm.weight", ours="norm.weight"),
    Pair(theirs="lm_head.weight", ours="head.weight"),
    *_same(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm"),
]
_QKV = {f"attention__{x}": f"self_attn.{x}_proj" for x in "qkv"}
_OUT = {"attention__out": "self_attn.o_proj"}
ATTENTION = [
    *_same(**_QKV, **_OUT),
    *_biases(**_QKV, **_OUT),
    *_same(attention__q_norm="self_attn.q_norm", attention__k_norm="self_attn.k_norm"),
    Pair(theirs=f"{LAYER}self_attn.sinks", ours=f"{BLOCK}attention.sinks"),
]
_COMPRESSING = {"attention__q__0": "self_attn.q_a_proj", "attention__kv_down": "self_attn.kv_a_proj_with_mqa"}
LATENT = [
    *_same(
        attention__q="self_attn.q_proj",
        attention__q__1="self_attn.q_a_layernorm",
        attention__q__2="self_attn.q_b_proj",
        attention__kv_norm="self_attn.kv_a_layernorm",
        attention__kv_up="self_attn.kv_b_proj",
        **_COMPRESSING,
        **_OUT,
    ),
    *_biases(**_COMPRESSING, **_OUT),
]
DENSE = _gated("mlp", "feed_forward")
_ROUTER = _same(feed_forward__router="mlp.gate")
_NUMBERED = _experts("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj")
QWEN = [*_ROUTER, *_NUMBERED]
QWEN2 = [
    *QWEN,
    *_gated("mlp.shared_expert", "feed_forward.shared"),
    *_same(feed_forward__shared_gate="mlp.shared_expert_gate"),
]
SHARED = [*QWEN, *_gated("mlp.shared_experts", "feed_forward.shared")]
DEEPSEEK = [
    *SHARED,
    Pair(theirs=f"{LAYER}mlp.gate.e_score_correction_bias", ours=f"{BLOCK}feed_forward.router.bias"),
]
MIXTRAL = [
    *_same(feed_forward__router="block_sparse_moe.gate"),
    *_experts("block_sparse_moe.experts", gate="w1", up="w3", down="w2"),
]
_GRANITE, _EXPERTS = f"{LAYER}block_sparse_moe.", f"{BLOCK}feed_forward.experts."
GRANITE = [
    *_same(feed_forward__router="block_sparse_moe.router.layer"),
    Pair(theirs=f"{_GRANITE}input_linear.weight", ours=f"{_EXPERTS}up_proj"),
    Pair(theirs=f"{_GRANITE}output_linear.weight", ours=f"{_EXPERTS}down_proj"),
]
_STACK = f"{LAYER}mlp.experts."
GPT_OSS = [
    *_same(feed_forward__router__gate="mlp.router"),
    *_biases(feed_forward__router__gate="mlp.router"),
    Pair(
        theirs=f"{_STACK}gate_up_proj",
        ours=f"{BLOCK}feed_forward.experts.up_proj",
        to_ours=lambda tensor: unweave(tensor).mT,
        to_theirs=lambda tensor: weave(tensor.mT),
    ),
    Pair(
        theirs=f"{_STACK}gate_up_proj_bias",
        ours=f"{BLOCK}feed_forward.experts.up_bias",
        to_ours=unweave,
        to_theirs=weave,
    ),
    Pair(
        theirs=f"{_STACK}down_proj",
        ours=f"{BLOCK}feed_forward.experts.down_proj",
        to_ours=_transpose,
        to_theirs=_transpose,
    ),
    Pair(theirs=f"{_STACK}down_proj_bias", ours=f"{BLOCK}feed_forward.experts.down_bias"),
]
