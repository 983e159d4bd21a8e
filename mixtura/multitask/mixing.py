"""One level of a multi-task mixture: groups of experts, and gates that each mix some of the groups.

Where all gates together ask for as many experts as there are, or more, every expert sees every row once, in one or two
batched products, whatever the number of gates. Where they ask for fewer (sparse gates), each expert sees only the rows
that are sent to it, by the kernels of `mixtura.MoE`. Both give the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from mixtura import kernels
from mixtura.dispatch import dispatch
from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.hooks import announce, is_heard, once_per_forward
from mixtura.losses.apply import apply_losses
from mixtura.routers.base import Router
from mixtura.routing import Routing, Rows, SlotRouting

MakeGate = Callable[[int, int], Router]
MakeExperts = Callable[[int, int], nn.Module]
SHARED = None  # the name of what belongs to no task


class ExpertStack(nn.Module):
    """E multi-layer perceptrons of equal shape, computed together, with the activation behind every layer.

    Unlike `GroupedMLP` an expert may have any number of layers, one included, and another width than its input.

    Args:
        num_experts: E.
        dim: D.
        widths: of the layers, the last one being that of the output, O.
        dropout: in training, the share of every layer's outputs that is set to 0; the others are scaled up.

    Shapes:
        weights: one (E, F, D) per layer. biases: one (E, F) per layer.

    Raises:
        UserError: no width, a size below 1, a dropout outside [0, 1).

    Example:
        >>> ExpertStack(num_experts=4, dim=8, widths=(16, 6)).every(torch.zeros(3, 8)).shape
        torch.Size([3, 4, 6])
    """

    def __init__(self, *, num_experts: int, dim: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        if not widths or min(num_experts, dim, *widths) < 1:
            raise UserError(
                f"expected experts of at least one layer and sizes of at least 1, got num_experts={num_experts}, "
                f"dim={dim}, widths={tuple(widths)}"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"expected 0 <= dropout < 1, got {dropout}")
        self.num_experts, self.dim, self.widths, self.dropout = num_experts, dim, tuple(widths), dropout
        sizes = list(pairwise((dim, *widths)))
        self.weights = nn.ParameterList(torch.empty(num_experts, out, into) for into, out in sizes)
        self.biases = nn.ParameterList(torch.empty(num_experts, out) for _, out in sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as He et al. 2015 advise for ReLU, each expert its own: U(-1, 1) sqrt(6 / fan_in); biases 0."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = (6 / weight.shape[2]) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(bias)

    def every(self, x_TD: Tensor) -> Tensor:
        """Every expert's output for every row: (T, D) -> (T, E, O)."""
        E = self.num_experts
        h_TEF = _one_product(x_TD, self.weights[0], self.biases[0])
        h_TEF = self._activate(h_TEF)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            h_ETF = torch.baddbmm(bias.view(E, 1, -1), h_TEF.transpose(0, 1), weight.transpose(1, 2))
            h_TEF = self._activate(h_ETF.transpose(0, 1))
        return h_TEF

    def forward(self, rows: Rows) -> Tensor:
        """Run each expert on its rows: Rows -> (N, O), weighted."""
        *parts, tail = rows.gather().split(rows.index.parts())
        outputs = [self._one(e, x) for e, x in enumerate(parts)]
        return rows.scale(torch.cat([*outputs, tail.new_zeros(tail.shape[0], self.widths[-1])]))

    def _one(self, e: int, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = self._activate(nn.functional.linear(x, weight[e], bias[e]))
        return x

    def _activate(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h.relu(), self.dropout, self.training) if self.dropout else h.relu()

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"num_experts={self.num_experts}, dim={self.dim}, widths={self.widths}" + (
            f", dropout={self.dropout}" if self.dropout else ""
        )


def _one_product(x_TD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All experts' first layer as one product: (T, D), (E, F, D) -> (T, E, F)."""
    E, F, D = weight.shape
    h = nn.functional.linear(x_TD, weight.reshape(E * F, D), None if bias is None else bias.reshape(E * F))
    return h.view(-1, E, F)


def every_expert(experts: nn.Module, x_TD: Tensor) -> Tensor:
    """Every expert's output for every row, without weights: (T, D) -> (T, E, O).

    Args:
        experts: an `ExpertStack`, a `GroupedMLP`, or a list of modules (`ModuleExperts`).
        x_TD: the rows.

    Raises:
        UserError: experts of another kind.

    Example:
        >>> every_expert(GroupedMLP(num_experts=3, dim=4, hidden=8), torch.zeros(2, 4)).shape
        torch.Size([2, 3, 4])
    """
    if isinstance(experts, ExpertStack):
        return experts.every(x_TD)
    if isinstance(experts, GroupedMLP):
        h_TEF = kernels.ACTIVATIONS[experts.activation].forward(_one_product(x_TD, experts.up_proj, experts.up_bias))
        h_TEF = nn.functional.dropout(h_TEF, experts.dropout, experts.training)
        y_TED = torch.bmm(h_TEF.transpose(0, 1), experts.down_proj.transpose(1, 2)).transpose(0, 1)
        return y_TED if experts.down_bias is None else y_TED + experts.down_bias
    if isinstance(experts, nn.ModuleList):
        return torch.stack([expert(x_TD) for expert in experts], 1)
    raise UserError(f"expected ExpertStack, GroupedMLP or ModuleExperts, got {type(experts).__name__}")


def weights_of(routing: Routing) -> Tensor:
    """The weight of every expert for every row, 0 where it was not chosen: (T, E).

    Example:
        >>> p = torch.zeros(1, 3)
        >>> routing = Routing.from_choices(torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.4]]), logits_TE=p, probs_TE=p)
        >>> [round(w, 1) for w in weights_of(routing)[0].tolist()]
        [0.4, 0.0, 0.6]
    """
    T, E = routing.num_tokens, routing.num_experts
    expert_N = routing.expert_N.where(routing.expert_N >= 0, E) if routing.partial else routing.expert_N
    weight = routing.weight_N.new_zeros(T * (E + 1)).scatter_add(
        0, routing.token_N * (E + 1) + expert_N, routing.weight_N
    )
    return weight.view(T, E + 1)[:, :E]


def part_of(routing: Routing, start: int, count: int) -> Routing:
    """The assignments to `count` experts from number `start` on, renumbered; all others go to no expert.

    Example:
        >>> p = torch.zeros(1, 3)
        >>> routing = Routing.from_choices(torch.tensor([[2, 0]]), torch.ones(1, 2), logits_TE=p, probs_TE=p)
        >>> part_of(routing, 1, 2).expert_N.tolist()
        [1, -1]
    """
    expert_N = routing.expert_N - start
    expert_N = expert_N.where((expert_N >= 0) & (expert_N < count), -1)
    cut = {name: getattr(routing, name)[:, start : start + count] for name in ("logits_TE", "probs_TE")}
    return replace(routing, expert_N=expert_N, partial=True, **cut)


class Level(nn.Module):
    """Groups of experts and the gates over them; a group or a gate belongs to a task, or to none (`SHARED`).

    A gate over one expert alone has nothing to choose: it has no parameters, and its weight is 1.

    Args:
        dim: D, width of every input.
        groups: whose experts -> how many.
        gates: whose gate -> the groups that it mixes, in the order of its distribution.
        make_gate: (D, E) -> router, for each owner of a gate.
        make_experts: (E, D) -> experts.
        losses: name -> coefficient, of `mixtura.losses`, of every gate; they act in training only.

    Raises:
        UserError: in `forward`, a router whose rows share slots, or with null experts.

    Example:
        >>> from mixtura.routers import Dense
        >>> make = lambda E, D: ExpertStack(num_experts=E, dim=D, widths=(5,))
        >>> level = Level(dim=4, groups={None: 3}, gates={"a": (None,)}, make_gate={"a": Dense}, make_experts=make)
        >>> mixed, weights = level({None: torch.zeros(2, 4), "a": torch.zeros(2, 4)})
        >>> mixed["a"].shape, weights["a"].shape
        (torch.Size([2, 5]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        *,
        dim: int,
        groups: Mapping[str | None, int],
        gates: Mapping[str | None, tuple[str | None, ...]],
        make_gate: Mapping[str | None, MakeGate],
        make_experts: MakeExperts,
        losses: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.groups, self.mixes, self.losses = dict(groups), dict(gates), dict(losses or {})
        self.experts = nn.ModuleList(make_experts(count, dim) for count in groups.values())
        sizes = {owner: sum(groups[group] for group in mixed) for owner, mixed in gates.items()}
        self.gates = nn.ModuleList(
            nn.Identity() if size == 1 else make_gate[owner](dim, size) for owner, size in sizes.items()
        )

    def forward(self, inputs: Mapping[str | None, Tensor]) -> tuple[dict[str | None, Tensor], dict[str | None, Tensor]]:
        """Mix: owner -> (T, D) into owner of a gate -> (T, O), and owner -> (T, E), what each expert weighed."""
        routings = {
            owner: _route(gate, inputs[owner])
            for (owner, gate) in zip(self.mixes, self.gates, strict=True)
            if isinstance(gate, Router)
        }
        weights = {owner: weights_of(routing) for owner, routing in routings.items()}
        asked = sum(r.token_N.shape[0] / max(1, r.num_tokens) for r in routings.values())
        few = len(routings) == len(self.mixes) and asked < sum(self.groups.values())
        mixed = self._sparse(inputs, routings) if few else self._dense(inputs, weights)
        for owner, gate in zip(self.mixes, self.gates, strict=True):
            if (routing := routings.get(owner)) is not None:
                if self.training and torch.is_grad_enabled():
                    mixed[owner] = apply_losses(gate, mixed[owner], routing, coefficients=self.losses)
                if is_heard():
                    announce(gate, routing, dispatch(routing, inputs[owner]))
        return mixed, weights

    def _dense(
        self, inputs: Mapping[str | None, Tensor], weights: Mapping[str | None, Tensor]
    ) -> dict[str | None, Tensor]:
        outputs = {group: every_expert(e, inputs[group]) for group, e in zip(self.groups, self.experts, strict=True)}
        mixed = {}
        for owner, groups in self.mixes.items():
            if owner not in weights:
                mixed[owner] = outputs[groups[0]][:, 0]
                continue
            parts = weights[owner].to(outputs[groups[0]].dtype).split([self.groups[group] for group in groups], 1)
            terms = [(w.unsqueeze(1) @ outputs[group]).squeeze(1) for w, group in zip(parts, groups, strict=True)]
            mixed[owner] = sum(terms[1:], terms[0])
        return mixed

    def _sparse(
        self, inputs: Mapping[str | None, Tensor], routings: Mapping[str | None, Routing]
    ) -> dict[str | None, Tensor]:
        experts, mixed = dict(zip(self.groups, self.experts, strict=True)), {}
        for owner, groups in self.mixes.items():
            terms, start = [], 0
            for group in groups:
                routing, count = routings[owner], self.groups[group]
                rows = dispatch(routing if len(groups) == 1 else part_of(routing, start, count), inputs[group])
                terms.append(rows.combine(experts[group](rows)))
                start += count
            mixed[owner] = sum(terms[1:], terms[0])
        return mixed


def _route(router: Router, x_TD: Tensor) -> Routing:
    routing: Routing = router(x_TD)
    if isinstance(routing, SlotRouting) or routing.null_experts:
        raise UserError(f"expected a gate that weighs experts alone, got {router}; take Dense or TopK")
    if router.training and type(router).observe is not Router.observe:
        once_per_forward(router, lambda: router.observe(routing))
    return routing
