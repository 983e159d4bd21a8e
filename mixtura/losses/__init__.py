"""Losses that keep a mixture balanced and stable: pure functions, and two ways to use them.

`LOSSES` holds functions of a `Routing`, `PARAMETER_LOSSES` functions of a layer's (router, experts). A layer names
either: `MoE(losses={"load_balance": 1e-2, "l2": 1e-4})`.

By default a layer *attaches* its losses: their gradient enters on the way back, and forward stays `y = layer(x)`.
Two traps follow, since the training loop never sees an attached loss:

* a GradScaler multiplies the task loss and not an attached one: with fp16 give its scale to `attach`, or collect;
* gradient accumulation adds the attached losses of every micro-batch: n micro-batches give n times the gradient.

`collect_losses` avoids both: inside the block nothing is attached, the losses are handed out to be added explicitly.

Example:
    >>> sorted(PARAMETER_LOSSES)
    ['l1', 'l2', 'orthogonality', 'router_orthogonality']
"""

from mixtura.losses.apply import CollectedLosses, apply_losses, attach, check_losses, collect_losses
from mixtura.losses.balance import (
    LOSSES,
    entropy,
    fastmoe_gshard,
    global_load_balance,
    gshard,
    importance,
    load,
    load_balance,
    paddle_gshard,
    sequence_load_balance,
    switch_gate,
    z_loss,
)
from mixtura.losses.parameters import PARAMETER_LOSSES, l1, l2, orthogonality, router_orthogonality

__all__ = [
    "LOSSES",
    "PARAMETER_LOSSES",
    "CollectedLosses",
    "apply_losses",
    "attach",
    "check_losses",
    "collect_losses",
    "entropy",
    "fastmoe_gshard",
    "global_load_balance",
    "gshard",
    "importance",
    "l1",
    "l2",
    "load",
    "load_balance",
    "orthogonality",
    "paddle_gshard",
    "router_orthogonality",
    "sequence_load_balance",
    "switch_gate",
    "z_loss",
]
