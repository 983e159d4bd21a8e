"""Multi-task models over any encoder: shared bottom, one gate, a gate per task, extraction in levels."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypedDict, Unpack

from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.losses import LOSSES
from mixtura.multitask.mixing import SHARED, ExpertStack, Level, MakeExperts, MakeGate
from mixtura.multitask.tasks import Prediction, Task, both, check_tasks
from mixtura.routers.dense import Dense

# For each level whose experts, and how many, and whose gate mixes whose experts.
Plan = list[tuple[dict[str | None, int], dict[str | None, tuple[str | None, ...]]]]


class Options(TypedDict, total=False):
    """What every multi-task model takes beside its own arguments; see `MultiTask`.

    Example:
        >>> options: Options = {"tower": (32,)}
    """

    dim: int | None
    tower: Sequence[int]
    dropout: float


class MixtureOptions(Options, total=False):
    """What every model with gates takes beside its own arguments; see `MultiTask`.

    Example:
        >>> options: MixtureOptions = {"expert": (64, 32)}
    """

    expert: Sequence[int] | MakeExperts
    gate: MakeGate | Mapping[str, MakeGate]
    losses: Mapping[str, float] | None


class MultiTask(nn.Module):
    """Base of the models: encoder, levels of experts, one tower per task. Made by its subclasses.

    Args:
        encoder: any module, called with what `forward` gets, whose output is (B, D); None: the input is (B, D) itself.
        tasks: what to predict.
        plan: for each level its groups and gates, see `Level`.
        source: task -> whose gate its tower reads.
        dim: D; None: `encoder.dim`.
        tower: widths of each task's hidden layers, with ReLU.
        dropout: in training, share of the experts' and towers' hidden units that are set to 0.
        expert: widths of each expert's layers, with ReLU behind every one; or (E, D) -> experts: `mixtura.GroupedMLP`,
            `mixtura.ModuleExperts`.
        gate: (D, E) -> router, by default `mixtura.routers.Dense`; sparse: `partial(mixtura.routers.TopK, k=2)`; or
            task -> such a function, where others than those named get `Dense`.
        losses: name -> coefficient, of `mixtura.losses`, of every gate; they act in training only.

    Raises:
        UserError: sizes below 1, no D, gates or losses that do not exist; in `forward`, an encoder of another width.

    Example:
        >>> import torch
        >>> model = MMoE(None, tasks=[Task(name="click"), Task(name="price", kind="regression")], dim=10)
        >>> said = model(torch.randn(4, 10))
        >>> said.scores["click"].shape, said.gates[0]["price"].shape
        (torch.Size([4]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        plan: Plan,
        source: Mapping[str, str | None],
        **options: Unpack[MixtureOptions],
    ) -> None:
        super().__init__()
        self.tasks, self.source = check_tasks(tasks), dict(source)
        self.encoder = nn.Identity() if encoder is None else encoder
        self.dim = _width(encoder, options.get("dim"))
        dropout, losses = options.get("dropout", 0.0), dict(options.get("losses") or {})
        if unknown := sorted(set(losses) - set(LOSSES)):
            raise UserError(f"expected losses among {', '.join(LOSSES)}, got {', '.join(unknown)}")
        make_experts = _experts(options.get("expert", (64,)), dropout)
        gates, dim, levels = _gates(options.get("gate", Dense), self.tasks), self.dim, []
        for groups, mixes in plan:
            levels.append(
                Level(dim=dim, groups=groups, gates=mixes, make_gate=gates, make_experts=make_experts, losses=losses)
            )
            dim = _output_width(levels[-1].experts[0])
        self.levels = nn.ModuleList(levels)
        self.tower_dim, tower = dim, tuple(options.get("tower", (32,)))
        # A list, since names of tasks are columns of users' tables, and may be no names of modules.
        self.towers = nn.ModuleList(_tower(dim, (*tower, task.width), dropout=dropout) for task in self.tasks)

    def forward(self, *inputs: Tensor) -> Prediction:
        """Predict every task: what the encoder takes -> `Prediction`."""
        x_BD = self.encoder(*inputs)
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            raise UserError(f"expected an encoder's output of shape (B, {self.dim}), got {tuple(x_BD.shape)}")
        state: dict[str | None, Tensor] = dict.fromkeys((SHARED, *self.source), x_BD)
        gates = []
        for level in self.levels:
            mixed, weights = level(state)
            state = {owner: mixed.get(owner, mixed.get(SHARED, x_BD)) for owner in state}
            owners = {task: task if task in weights else SHARED for task in self.source}
            gates.append({task: weights[owner] for task, owner in owners.items() if owner in weights})
        state, handed = self.between(state)
        gates[-1].update(handed)
        scores: dict[str, Tensor] = {}
        for task, tower in zip(self.tasks, self.towers, strict=True):
            score = tower(state[self.source[task.name]])
            score = score if task.kind == "multiclass" else score.squeeze(1)
            scores[task.name] = score if task.after is None else both(scores[task.after], score)
        return Prediction(tasks=self.tasks, scores=scores, gates=tuple(gates))

    def between(self, state: Mapping[str | None, Tensor]) -> tuple[dict[str | None, Tensor], dict[str, Tensor]]:
        """What the towers see of what the last level gave, and further entries of its gates; here nothing happens."""
        return dict(state), {}

    def experts_of(self, task: str, *, level: int = -1) -> list[str]:
        """Names of the experts in the order of `Prediction.gates[level][task]`; none where it has no gate.

        Raises:
            UserError: no such task.
        """
        if task not in self.source:
            raise UserError(f"expected a task among {', '.join(self.source)}, got {task!r}")
        at = self._level(level)
        mixed = at.mixes.get(task, at.mixes.get(SHARED, ()))
        names = [f"{group or 'shared'} {number}" for group in mixed for number in range(at.groups[group])]
        return names if len(names) > 1 else []

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last shared experts: what `GradNorm` measures the tasks' gradients at.

        Raises:
            UserError: a model that shares no expert.
        """
        level = self._level(-1)
        if SHARED not in level.groups:
            raise UserError("expected a model with shared experts, got one without; GradNorm needs what tasks share")
        experts: nn.Module = level.experts[list(level.groups).index(SHARED)]
        return list(experts.parameters())

    def _level(self, number: int) -> Level:
        level = self.levels[number]
        assert isinstance(level, Level)
        return level


class SharedBottom(MultiTask):
    """One network for all tasks, and a tower for each.

    Source: Caruana 1997 (Multitask learning); as the baseline of Ma et al. 2018 (MMoE), equation 1.

    Args:
        encoder: see `MultiTask`.
        tasks: see `MultiTask`.
        bottom: widths of the shared layers.
        options: see `MultiTask`: dim, tower, dropout.

    Example:
        >>> import torch
        >>> SharedBottom(None, tasks=[Task(name="click")], bottom=(16,), dim=4)(torch.zeros(3, 4)).scores["click"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        bottom: Sequence[int] = (64,),
        **options: Unpack[Options],
    ) -> None:
        source: dict[str, str | None] = {task.name: SHARED for task in tasks}
        plan: Plan = [({SHARED: 1}, {SHARED: (SHARED,)})]
        super().__init__(encoder, tasks=tasks, plan=plan, source=source, expert=bottom, **options)


class OMoE(MultiTask):
    """Experts under one gate for all tasks (Ma et al. 2018, section 4.1: the original mixture as a shared bottom).

    Args:
        encoder: see `MultiTask`.
        tasks: see `MultiTask`.
        num_experts: E.
        options: see `MultiTask`; a gate per task is no option here.

    Example:
        >>> import torch
        >>> said = OMoE(None, tasks=[Task(name="a"), Task(name="b")], num_experts=4, dim=4)(torch.zeros(3, 4))
        >>> said.gates[0]["a"] is said.gates[0]["b"]
        True
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        num_experts: int = 8,
        **options: Unpack[MixtureOptions],
    ) -> None:
        _check_counts(num_experts=num_experts)
        source: dict[str, str | None] = {task.name: SHARED for task in tasks}
        plan: Plan = [({SHARED: num_experts}, {SHARED: (SHARED,)})]
        super().__init__(encoder, tasks=tasks, plan=plan, source=source, **options)


class MMoE(MultiTask):
    """Shared experts, and for each task a gate of its own over them.

    With several levels the experts of a level above see a mixture by a shared gate, and the gates of each task what
    the task's gate below has mixed (ML-MMoE of Tang et al. 2020, figure 3). Source: Ma et al. 2018, equations 6 and 7.

    Args:
        encoder: see `MultiTask`.
        tasks: see `MultiTask`.
        num_experts: E, of each level.
        levels: how many.
        options: see `MultiTask`.

    Example:
        >>> import torch
        >>> model = MMoE(None, tasks=[Task(name="a"), Task(name="b")], num_experts=4, expert=(16,), dim=4)
        >>> model(torch.zeros(3, 4)).gates[0]["a"].sum(-1).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        num_experts: int = 8,
        levels: int = 1,
        **options: Unpack[MixtureOptions],
    ) -> None:
        _check_counts(num_experts=num_experts, levels=levels)
        names = [task.name for task in tasks]
        plan = _extraction(names, dict.fromkeys(names, 0), shared=num_experts, levels=levels)
        super().__init__(encoder, tasks=tasks, plan=plan, source=dict(zip(names, names, strict=True)), **options)


class PLE(MultiTask):
    """Experts of each task's own beside shared ones, in one or several levels of extraction.

    A task's gate mixes its own and the shared experts; below the last level a shared gate mixes all of them for the
    shared experts above. One level is CGC. Source: Tang et al. 2020 (Progressive layered extraction), sections 4.1
    and 4.2.

    Args:
        encoder: see `MultiTask`.
        tasks: see `MultiTask`.
        shared_experts: of each level.
        task_experts: of each task and level; or task -> number, 2 where a task is not named.
        levels: how many.
        options: see `MultiTask`.

    Example:
        >>> import torch
        >>> model = PLE(None, tasks=[Task(name="a"), Task(name="b")], shared_experts=2, task_experts=1, levels=2, dim=4)
        >>> model(torch.zeros(3, 4)).gates[1]["b"].shape, model.experts_of("b")
        (torch.Size([3, 3]), ['b 0', 'shared 0', 'shared 1'])
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        shared_experts: int = 2,
        task_experts: int | Mapping[str, int] = 2,
        levels: int = 2,
        **options: Unpack[MixtureOptions],
    ) -> None:
        names = [task.name for task in tasks]
        if isinstance(task_experts, Mapping):
            _check_named(task_experts, names, what="task_experts")
            counts = {name: task_experts.get(name, 2) for name in names}
        else:
            counts = dict.fromkeys(names, task_experts)
        _check_counts(shared_experts=shared_experts, levels=levels)
        if min(counts.values(), default=0) < 0:
            raise UserError(f"expected task_experts of at least 0, got {min(counts.values())}")
        plan = _extraction(names, counts, shared=shared_experts, levels=levels)
        super().__init__(encoder, tasks=tasks, plan=plan, source=dict(zip(names, names, strict=True)), **options)


def _extraction(names: Sequence[str], counts: Mapping[str, int], *, shared: int, levels: int) -> Plan:
    """Groups and gates of each level; below the last one a shared gate too."""
    groups: dict[str | None, int] = {**{name: counts[name] for name in names if counts[name]}, SHARED: shared}
    own: dict[str | None, tuple[str | None, ...]] = {
        name: (name, SHARED) if counts[name] else (SHARED,) for name in names
    }
    everything: dict[str | None, tuple[str | None, ...]] = {SHARED: tuple(groups)}
    return [(groups, {**own, **(everything if level < levels - 1 else {})}) for level in range(levels)]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"expected {name} of at least 1, got {count}")


def _check_named(named: Mapping[str, object], names: Sequence[str], *, what: str) -> None:
    if unknown := sorted(set(named) - set(names)):
        raise UserError(f"expected {what} of tasks among {', '.join(names)}, got {', '.join(unknown)}")


def _width(encoder: nn.Module | None, dim: int | None) -> int:
    width = getattr(encoder, "dim", None) if dim is None else dim
    if not isinstance(width, int) or width < 1:
        raise UserError(f"expected dim=, the width of what the encoder gives, or an encoder with .dim; got {width}")
    return width


def _experts(expert: Sequence[int] | MakeExperts, dropout: float) -> MakeExperts:
    if callable(expert):
        return expert
    return partial(_stack, widths=tuple(expert), dropout=dropout)


def _stack(num_experts: int, dim: int, *, widths: tuple[int, ...], dropout: float) -> ExpertStack:
    return ExpertStack(num_experts=num_experts, dim=dim, widths=widths, dropout=dropout)


def _gates(gate: MakeGate | Mapping[str, MakeGate], tasks: Sequence[Task]) -> dict[str | None, MakeGate]:
    names = [task.name for task in tasks]
    if isinstance(gate, Mapping):
        _check_named(gate, names, what="gates")
        return {SHARED: Dense, **{name: gate.get(name, Dense) for name in names}}
    return dict.fromkeys((SHARED, *names), gate)


def _output_width(experts: nn.Module) -> int:
    if isinstance(experts, ExpertStack):
        return experts.widths[-1]
    if isinstance(width := getattr(experts, "dim", None), int):
        return width
    last = [module for module in experts.modules() if isinstance(module, nn.Linear)]
    if not last:
        raise UserError("expected experts with .dim or a last linear layer, which tell their width, got neither")
    return last[-1].out_features


def _tower(dim: int, widths: Sequence[int], *, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1]))
