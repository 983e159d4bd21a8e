"""Dense to sparse: any model's MLPs become mixtures."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.surgery.batches import inputs_of
from mixtura.surgery.cluster import Cluster
from mixtura.surgery.initial import Drop, Init, Noise, Random, Split, Upcycle
from mixtura.surgery.layers import experts_of
from mixtura.surgery.sites import Site, find_mlps

INITS: dict[str, type[Init]] = {
    "upcycle": Upcycle,
    "drop": Drop,
    "noise": Noise,
    "split": Split,
    "random": Random,
    "cluster": Cluster,
}


def moefy(
    model: nn.Module,
    match: str = "*",
    *,
    num_experts: int = 8,
    k: int = 2,
    init: str | Init = "upcycle",
    router: str = "topk",
    router_options: Mapping[str, Any] | None = None,
    capacity_factor: float | None = None,
    losses: Mapping[str, float] | None = None,
    dropout: float | None = None,
    every: int = 1,
    last: int | None = None,
    data: Iterable[Any] | None = None,
) -> nn.Module:
    """Make mixtures of a dense model's MLPs, in place.

    With "upcycle", "split", and "cluster" where k = E, the model computes at that moment what it did before: the
    default router's weights are a softmax over the k chosen experts, so that they add up to 1, and equal experts, or
    slices chosen together, give the dense output. The weights of other routers may add up to another number; it is
    measured, and the experts' second matrix is divided by it. Where it differs from token to token (softmax before the
    choice, without renormalisation) the outputs are equal on average only, and a warning says so.

    Args:
        model: any module: a `mixtura.models.GPT`, layers of torch's Transformer, Hugging Face models; see `find_mlps`.
        match: a pattern with `*`, of the names of the MLPs; for torch's and BERT's layers of the layers themselves.
        num_experts: E.
        k: experts per token.
        init: "upcycle", "drop", "noise", "split", "random", "cluster", or one of those objects with values of its own:
            `Drop(ratio=0.25)`.
        router: a name in `mixtura.routers.ROUTERS`.
        router_options: further arguments of that router.
        capacity_factor: see `MoE`.
        losses: see `MoE`.
        dropout: of the hidden units; None: as the MLP has it.
        every: of the MLPs found, only the n-th, 2n-th, and so on.
        last: of those, only the last n.
        data: batches for "cluster": the model is called with each (a mapping as keyword arguments, a tuple as
            positional ones).

    Returns:
        The model; where it was itself the MLP, the mixture.

    Raises:
        UserError: nothing found, an unknown `init` or router, sizes that do not fit; see also the init's own.

    Warns:
        UserWarning: the output is equal on average only.

    Example:
        >>> import torch
        >>> import mixtura as mx
        >>> dense = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        >>> x = torch.randn(5, 4)
        >>> expected = dense(x)
        >>> torch.allclose(mx.moefy(dense, num_experts=4, k=2)(x), expected, atol=1e-6)
        True
    """
    init = _init(init)
    if every < 1 or (last is not None and last < 1):
        raise UserError(f"expected every and last of at least 1, got every={every} and last={last}")
    found = find_mlps(model, match, dropout=dropout)
    sites = found[every - 1 :: every][-(last or len(found)) :]
    if not sites:
        names = [site.name or type(model).__name__ for site in find_mlps(model, dropout=dropout or 0.0)]
        raise UserError(
            f"expected MLPs that match {match!r}, and {every} of them at least, got {len(found)}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    inputs = {}
    if init.needs_inputs and data is not None:
        inputs = inputs_of(model, [site.entry for site in sites], data)
    config = MoEConfig(
        dim=sites[0].dim,
        hidden=1,  # the experts are made from each MLP
        num_experts=num_experts,
        k=k,
        router=router,
        router_options=router_options or {},
        capacity_factor=capacity_factor,
        losses=losses or {},
    )
    for site in sites:
        layer = _mixture(site, init, config, inputs.get(site.entry))
        model = site.install(model, layer.train(model.get_submodule(site.entry).training))
    return model


def _init(init: str | Init) -> Init:
    if not isinstance(init, str):
        return init
    if init not in INITS:
        raise UserError(f"expected init among {', '.join(INITS)}, or one of their objects, got {init!r}")
    return INITS[init]()


def _mixture(site: Site, init: Init, config: MoEConfig, inputs_TD: Tensor | None) -> MoE:
    layer = replace(config, dim=site.dim).build()
    layer.router.to(site.mlp.up)
    layer.experts = experts_of(init.experts(site.mlp, layer.router, inputs_TD=inputs_TD), dropout=site.dropout)
    return layer
