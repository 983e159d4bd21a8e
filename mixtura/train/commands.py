"""What `mixtura upcycle | prune | branch | merge` are given, and the call that each makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixtura.surgery.prune import Measure
from mixtura.train.operate import Next, prune_run, upcycle_run


@dataclass(frozen=True, kw_only=True)
class UpcycleArguments:
    """Make a dense run's model sparse and write it as a new run, which `mixtura resume` trains.

    Example:
        >>> UpcycleArguments(run="runs/dense").num_experts
        8
    """

    run: str
    """Folder of a run with a dense model."""
    num_experts: int = 8
    """E, experts of each mixture."""
    k: int = 2
    """K, experts per token."""
    init: Literal["upcycle", "drop", "noise", "split", "random", "cluster"] = "upcycle"
    """upcycle: copies; drop: copies with half of their units fresh; noise; split: slices; cluster: groups of units."""
    router: str = "topk"
    """A name in mixtura.routers.ROUTERS."""
    every: int = 1
    """Every n-th block becomes a mixture."""
    steps: int = 0
    """Train for so many steps at once; 0: not yet."""
    lr: float = 0.0
    """Learning rate at its peak; 0: that of the run."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    name: str = "upcycled"
    """Folder of the new run, beside the old one."""


@dataclass(frozen=True, kw_only=True)
class PruneArguments:
    """Take the experts that matter least out of a run's model and write a new run, which `mixtura resume` trains.

    Example:
        >>> PruneArguments(run="runs/latest").by
        'reap'
    """

    run: str
    """Folder of a run with mixtures."""
    keep: float = 0.5
    """How many experts of each mixture stay; below 1: which share."""
    by: Measure = "reap"
    """What makes an expert matter: reap (mean weight times output), frequency, router_norm, random."""
    k: int = 0
    """Experts per token from now on; 0: as before."""
    batches: int = 16
    """Batches of training text to measure on."""
    steps: int = 0
    """Train for so many steps at once; 0: not yet."""
    lr: float = 0.0
    """Learning rate at its peak; 0: that of the run."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    name: str = "pruned"
    """Folder of the new run, beside the old one."""


@dataclass(frozen=True, kw_only=True)
class BranchArguments:
    """Train one branch per domain from a run's model, each in a process of its own; called again, it goes on.

    Example:
        >>> BranchArguments(run="runs/seed").jobs
        2
    """

    run: str
    """Folder of the run to begin with."""
    steps: int = 500
    """Steps of each branch."""
    domains: tuple[str, ...] = ()
    """Domains of the run's text; empty: all."""
    jobs: int = 2
    """Branches trained at a time; they share the cores."""
    lr: float = 0.0
    """Learning rate at its peak; 0: that of the run."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    name: str = "branches"
    """Folder of the branches, beside the run."""


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """Average, ensemble and mixture of branches, compared with them and with their seed on every domain.

    Example:
        >>> MergeArguments(branches="runs/branches").weights
        'uniform'
    """

    branches: str
    """A folder that `mixtura branch` wrote."""
    weights: Literal["uniform", "score", "posterior", "greedy"] = "uniform"
    """Of the average: uniform, by 1 / held-out loss, by posterior, or a greedy soup."""
    k: int = 2
    """Experts per token of the mixture."""
    router: str = "topk"
    """Router of the mixture."""
    steps: int = 0
    """Train the mixture for so many steps; 0: not yet."""
    lr: float = 0.0
    """Learning rate at its peak; 0: that of the branches."""
    checkpoint: str = "best"
    """Of the branches: best, or last."""
    name: str = "mixture"
    """Folder of the mixture's run, inside that of the branches."""


def upcycle(given: UpcycleArguments) -> Path:
    """`mixtura upcycle`."""
    return upcycle_run(
        given.run,
        _following(given),
        num_experts=given.num_experts,
        k=given.k,
        init=given.init,
        router=given.router,
        every=given.every,
    )


def prune(given: PruneArguments) -> Path:
    """`mixtura prune`."""
    return prune_run(given.run, _following(given), keep=given.keep, by=given.by, k=given.k, batches=given.batches)


def branch(given: BranchArguments) -> Path:
    """`mixtura branch`."""
    from mixtura.train.branch import branch as run_branches  # late: chains of imports stay short

    return run_branches(given.run, _following(given), domains=given.domains, jobs=given.jobs)


def merge(given: MergeArguments) -> Path:
    """`mixtura merge`."""
    from mixtura.train.branch import merge_branches  # late: chains of imports stay short

    return merge_branches(given.branches, _following(given), weights=given.weights, k=given.k, router=given.router)


def _following(given: UpcycleArguments | PruneArguments | BranchArguments | MergeArguments) -> Next:
    return Next(name=given.name, steps=given.steps, lr=given.lr, checkpoint=given.checkpoint)
