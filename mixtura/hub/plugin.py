"""mixtura's kernels as `experts_implementation="mixtura"` of transformers: any of its mixtures, weights unchanged.

What a forward copies beside the rows themselves:

* (E, 2F, D) and (E, D, F), as nearly all families have them: no weight.
* Transposed, (E, D, 2F) and (E, F, D) (Aria, gpt-oss): on a CPU no weight, since the kernels read the transposed view
  and write its gradient transposed too (without the compiled one, `kernels.layout` alone may put them into the order of
  its groups, for the length of a pass).
* Gate and up interleaved (gpt-oss): on a CPU no weight, since the activation takes its columns apart; on a GPU one copy
  of the up matrices with the halves apart, kept for the backward pass, and their gradient is woven back once.
* Under autocast, all weights in its dtype.

An activation that no kernel knows is computed by a loop over the experts' sorted rows, with a warning; what it is, is
found by asking the module's own function for its values, so that nothing depends on its name.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixtura import kernels
from mixtura.hooks import outside_graph
from mixtura.hub.library import experts_interface
from mixtura.kernels.activations import ACTIVATIONS, WOVEN_PREFIX, StackedMLP, unweave
from mixtura.kernels.grouping import group, slots_of
from mixtura.kernels.rows import RowIndex, is_traced
from mixtura.routing import Rows

NAME = "mixtura"
_KNOWN = "_mixtura_activation"  # the attribute under which a module's activation is remembered


def register() -> None:
    """Make `experts_implementation="mixtura"` known to transformers: for `from_pretrained` and for existing models.

    Every mixture that transformers runs through its experts interface then computes with mixtura's kernels, forward and
    backward, with its own parameters: with biases, transposed, interleaved or without a gate, under gradient
    checkpointing, with expert parallelism (an expert index of E and above is skipped), and with adapters on its
    parameters. A second call changes nothing.

    Raises:
        UserError: transformers is missing, or too old for its experts interface.

    Warns:
        UserWarning: in a forward, once per kind of module: an activation without a kernel, which runs in a loop.

    Example:
        >>> register()
        >>> from transformers import AutoModelForCausalLM, MixtralConfig
        >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
        >>> config = MixtralConfig(**sizes, num_hidden_layers=1, vocab_size=10, num_local_experts=4)
        >>> model = AutoModelForCausalLM.from_config(config, experts_implementation="mixtura")
        >>> model(torch.zeros(1, 3, dtype=torch.long)).logits.shape
        torch.Size([1, 3, 10])
        >>> model.set_experts_implementation("eager")  # and back
    """
    experts_interface().register(NAME, _experts_forward)


def _experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls in place of its experts' forward; the names of the arguments are its own.

    Tokens (T, D), each one's experts (T, K), of which E and above are none, and their weights (T, K); gives (T, D).
    """
    layout: Any = module
    device = hidden_states.device.type
    down = layout.down_proj
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else down.dtype
    form = _form(module)
    rows = _rows(hidden_states.to(dtype), top_k_index, top_k_weights, num_experts=layout.num_experts)
    experts = _stack(layout, dtype=dtype, form=form, woven=form.interleaved and device == "cpu")
    post_norm = layout.post_expert_norm if getattr(layout, "has_post_expert_norm", False) else None
    # A norm behind the experts must see their outputs before these are weighted.
    weight_N = rows.weight_N if post_norm is None else torch.ones_like(rows.weight_N)
    if form.activation is None:
        y_ND = _loop(layout, rows, experts)
        y_ND = y_ND * weight_N.to(y_ND.dtype).unsqueeze(-1)
    else:
        y_ND = kernels.grouped_mlp(rows.x_TD, weight_N, rows.index, experts=experts)
    if post_norm is not None:
        y_ND = rows.scale(post_norm(y_ND))
    return rows.combine(y_ND).to(hidden_states.dtype)


def _rows(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, *, num_experts: int) -> Rows:
    T, K = expert_TK.shape
    order_N, counts_E = group(expert_TK.reshape(-1), num_experts=num_experts)
    # Whether every choice reached an expert is a value: only a CPU tells it at once.
    all_kept = not is_traced(x_TD) and x_TD.device.type == "cpu" and int(counts_E.sum()) == T * K
    index = RowIndex(
        token_N=order_N // K,
        counts_E=counts_E,
        slot_TK=slots_of(order_N, counts_E, choices=K, all_kept=all_kept),
        num_tokens=T,
        dropless=all_kept,
    )
    return Rows(x_TD=x_TD, weight_N=weight_TK.reshape(-1).float().index_select(0, order_N), index=index)


def _stack(layout: Any, *, dtype: torch.dtype, form: "_Form", woven: bool) -> StackedMLP:
    """The experts' parameters as kernels take them: views, unless gate and up are to be taken apart."""
    name = "gate_up_proj" if layout.has_gate else "up_proj"
    up, down = getattr(layout, name), layout.down_proj
    up_bias, down_bias = (getattr(layout, f"{p}_bias") if layout.has_bias else None for p in (name, "down_proj"))
    if form.interleaved and not woven:
        # Column by column, since the last dimension is the columns of transposed matrices and of biases alike.
        up = unweave(up) if layout.is_transposed else unweave(up.mT).mT
        up_bias = None if up_bias is None else unweave(up_bias)
    if layout.is_transposed:
        up, down = up.mT, down.mT
    up_bias, down_bias = (None if bias is None else bias.to(dtype) for bias in (up_bias, down_bias))
    activation = (WOVEN_PREFIX if woven else "") + (form.activation or "")
    return StackedMLP(up.to(dtype), down.to(dtype), up_bias, down_bias, activation)


def _loop(layout: Any, rows: Rows, experts: StackedMLP) -> Tensor:
    """Each expert on its rows by the module's own activation: (N, D), not weighted."""
    up, down, up_bias, down_bias, _ = experts
    activate = layout._apply_gate if layout.has_gate else layout.act_fn
    *parts, tail = rows.gather().split(rows.index.parts())
    # Taken apart once: indexing would write a gradient of all experts for each of them.
    stacks = [[None] * len(parts) if part is None else part.unbind() for part in (up, down, up_bias, down_bias)]
    linear = torch.nn.functional.linear
    outputs = [
        linear(activate(linear(x, W, b)), V, c) for x, W, V, b, c in zip(parts, *stacks, strict=True) if x.shape[0]
    ]
    return torch.cat([*outputs, tail.new_zeros(tail.shape[0], down.shape[1])])


class _Form(NamedTuple):
    """What a module's activation is: a name in `ACTIVATIONS` or None, and whether gate and up columns alternate."""

    activation: str | None
    interleaved: bool


def _form(module: nn.Module) -> _Form:
    """The module's form, found at its first forward and again when something it was found from has changed."""
    layout: Any = module
    facts = tuple(getattr(layout, name, None) for name in ("act_fn", "limit", "alpha", "swiglu_limit", "swiglu_alpha"))
    known = getattr(layout, _KNOWN, None)
    if known is None or known[1] != facts:
        known = (outside_graph(_find_form, module), facts)
        setattr(module, _KNOWN, known)
    form: _Form = known[0]
    return form


@torch.no_grad()
def _find_form(module: nn.Module) -> _Form:
    """Compare the module's activation with every one that kernels know, on fixed values."""
    layout: Any = module
    act_fn = getattr(layout, "act_fn", None)
    if not (isinstance(act_fn, nn.Module) and any(True for _ in act_fn.parameters())):
        generator = torch.Generator("cpu").manual_seed(0)
        z = 24 * torch.rand(256, 8, generator=generator, device="cpu", dtype=torch.float32) - 12
        given = (layout._apply_gate if layout.has_gate else layout.act_fn)(z)
        for name, activation in ACTIVATIONS.items():
            for interleaved in (False, True) if layout.has_gate else (False,):
                if activation.gated == layout.has_gate:
                    expected = activation.forward(unweave(z) if interleaved else z)
                    if given.shape == expected.shape and torch.allclose(given, expected, rtol=1e-4, atol=1e-5):
                        return _Form(name, interleaved)
    warnings.warn(
        f"expected an activation of {type(module).__name__} among {', '.join(sorted(ACTIVATIONS))}, got another: its "
        "experts run one after another, slower than by a kernel",
        stacklevel=2,
    )
    return _Form(activation=None, interleaved=False)
