"""The one EM loop: it knows trainers of a gate and of experts, and nothing else.

E-step: responsibilities in log space. M-step: the gate's and the experts' own `fit`. At temperature T > 1
(deterministic annealing, Ueda and Nakano 1998) responsibilities are proportional to the T-th root of the joint density,
and what never falls is T times the log-sum of these roots; at T = 1 it is the penalised log-likelihood.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mixtura.classical.columns import Array, blocks
from mixtura.classical.data import Data
from mixtura.classical.experts.base import ExpertTrainer, FittedExperts
from mixtura.classical.gates.base import FittedGate, GateTrainer

# An expert with less than this share of an even division explains nothing.
EMPTY_SHARE = 1e-4
MOST_RESEEDS = 3
# Iterations without a gain before EM stops, where the likelihood may fall on the way.
PATIENCE = 5
COOLING = 0.9
JITTER = 0.03
STEPS_PER_TEMPERATURE = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """What EM works on: the bound gate and experts, the weights of the rows, and when to stop.

    `tol` is the gain of the objective per unit of sample weight, in nats, below which an iteration counts as the last.
    """

    gate: GateTrainer
    experts: ExpertTrainer
    sample_weight: Array
    n_experts: int
    tol: float
    max_iter: int
    temperature: float = 1.0
    reseed: bool = True

    @property
    def monotone(self) -> bool:
        """Whether no iteration can lower the objective."""
        return self.gate.monotone and self.experts.monotone


@dataclass(frozen=True, kw_only=True)
class Step:
    """One iteration: temperature, objective (what may not fall), log-likelihood, and the experts re-seeded after it.

    Example:
        >>> Step(temperature=1.0, objective=-3.0, log_likelihood=-2.9).reseeded
        ()
    """

    temperature: float
    objective: float
    log_likelihood: float
    reseeded: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A fitted gate and fitted experts."""

    gate: FittedGate
    experts: FittedExperts


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run of EM stands: it can be continued from here.

    `weights` (n_samples, n_experts) are responsibilities times sample weights, what the next M-step takes. `best` are
    the parameters with the highest objective at the final temperature so far. `division` are the first weights, kept if
    EM is to be cooled.
    """

    weights: Array
    current: Parameters | None = None
    best: Parameters | None = None
    best_objective: float = -np.inf
    best_log_likelihood: float = -np.inf
    steps: tuple[Step, ...] = ()
    waited: int = 0
    n_reseeds: int = 0
    converged: bool = False
    division: Array | None = None


def responsibilities(log_joint: Array, *, temperature: float = 1.0) -> tuple[Array, Array]:
    """Normalise log-joint densities over the experts, in place.

    Returns:
        the responsibilities (n_samples, n_experts), in the memory of `log_joint`, and the log-density (n_samples,) at
        this temperature.

    Example:
        >>> posterior, log_density = responsibilities(np.log([[0.1, 0.3]]))
        >>> posterior, np.exp(log_density)
        (array([[0.25, 0.75]]), array([0.4]))
    """
    log_density = np.empty(len(log_joint))
    for rows in blocks(len(log_joint), 4 * log_joint.shape[1]):
        block = log_joint[rows]
        if temperature != 1.0:
            block /= temperature
        top = block.max(axis=1)
        # A row that no expert can explain at all is shared evenly instead of becoming NaN.
        top = np.where(np.isfinite(top), top, 0.0)
        block -= top[:, None]
        np.exp(block, out=block)
        norm = block.sum(axis=1)
        lost = norm == 0
        block[lost] = 1.0
        block /= np.where(lost, log_joint.shape[1], norm)[:, None]
        with np.errstate(divide="ignore"):
            log_density[rows] = temperature * (top + np.log(norm))
    return log_joint, log_density


def maximise(task: Task, progress: Progress) -> Parameters:
    """M-step: fit the gate and the experts to the weights, warm from the parameters before."""
    before = progress.current
    return Parameters(
        gate=task.gate.fit(progress.weights, None if before is None else before.gate),
        experts=task.experts.fit(progress.weights, None if before is None else before.experts),
    )


def expect(task: Task, parameters: Parameters, *, temperature: float = 1.0) -> tuple[Array, Array]:
    """E-step on the training rows: responsibilities and log-density at this temperature."""
    log_joint = task.experts.log_density(parameters.experts)
    log_joint += task.gate.log_score(parameters.gate)
    return responsibilities(log_joint, temperature=temperature)


def run(
    task: Task, progress: Progress, *, iterations: int, report: Callable[[int, Step], None] | None = None
) -> Progress:
    """Do up to `iterations` more iterations; stops early when converged or when `task.max_iter` is reached."""
    for _ in range(min(iterations, task.max_iter - len(progress.steps))):
        if progress.converged:
            break
        progress = iterate(task, progress)
        if report is not None:
            report(len(progress.steps), progress.steps[-1])
    return progress


def iterate(task: Task, progress: Progress) -> Progress:
    """Do one iteration: M-step, E-step, bookkeeping, and a second chance for experts that explain nothing."""
    temperature = temperature_at(task.temperature, len(progress.steps))
    if progress.division is not None and progress.steps and temperature != progress.steps[-1].temperature:
        # In the heat all experts become one, a saddle point that EM alone would never leave.
        progress = replace(progress, weights=(1 - JITTER) * progress.weights + JITTER * progress.division)
    parameters = maximise(task, progress)
    weights, log_density = expect(task, parameters, temperature=temperature)
    weights *= task.sample_weight[:, None]
    penalty = parameters.gate.penalty + parameters.experts.penalty
    log_likelihood = float(task.sample_weight @ log_density)
    step = Step(temperature=temperature, objective=log_likelihood - penalty, log_likelihood=log_likelihood)
    after = replace(progress, weights=weights, current=parameters, steps=(*progress.steps, step))
    if temperature > 1.0:
        return after
    gain = step.objective - progress.best_objective
    if gain > 0 or after.best is None:
        after = replace(after, best=parameters, best_objective=step.objective, best_log_likelihood=step.log_likelihood)
    waited = 0 if gain > task.tol * float(task.sample_weight.sum()) else progress.waited + 1
    empty = empty_experts(task, weights)
    if empty and progress.n_reseeds < MOST_RESEEDS:
        weights = reseed(weights, log_density, task.sample_weight, empty=empty)
        step = replace(step, reseeded=empty)
        return replace(
            after, weights=weights, steps=(*progress.steps, step), n_reseeds=progress.n_reseeds + 1, waited=0
        )
    # After a second chance the objective starts lower, and after the heat near a saddle: both need time.
    patience = 1 if task.monotone and not progress.n_reseeds and task.temperature == 1.0 else PATIENCE
    return replace(after, waited=waited, converged=waited >= patience)


def temperature_at(start: float, iteration: int) -> float:
    """Give the temperature of an iteration: it falls in steps from `start` and then stays at exactly 1.

    Example:
        >>> [round(temperature_at(1.2, i), 2) for i in range(9)]
        [1.2, 1.2, 1.2, 1.08, 1.08, 1.08, 1.0, 1.0, 1.0]
    """
    return float(max(1.0, start * COOLING ** (iteration // STEPS_PER_TEMPERATURE)))


def empty_experts(task: Task, weights: Array) -> tuple[int, ...]:
    """List the experts that explain (nearly) nothing and could be re-seeded."""
    if not task.reseed or task.n_experts == 1:
        return ()
    share = weights.sum(axis=0)
    low = (share < EMPTY_SHARE * share.sum() / task.n_experts) & ~task.experts.frozen
    return tuple(int(k) for k in np.flatnonzero(low))


def reseed(weights: Array, log_density: Array, sample_weight: Array, *, empty: tuple[int, ...]) -> Array:
    """Give each empty expert a share of the rows that the mixture explains worst: half of an even division each."""
    n_experts = weights.shape[1]
    order = np.argsort(log_density, kind="stable")
    reached = np.cumsum(sample_weight[order]) / sample_weight.sum()
    start = 0
    for place, k in enumerate(empty, 1):
        stop = max(start + 1, int(np.searchsorted(reached, 0.5 * place / n_experts + 1e-12, side="right")))
        rows = order[start:stop]
        weights[rows] = 0.0
        weights[rows, k] = sample_weight[rows]
        start = stop
    return weights


def start(data: Data, shares: Array, *, temperature: float = 1.0) -> Progress:
    """Begin with a division of the rows (n_samples, n_experts) whose rows sum to one."""
    weights = np.asfortranarray(shares) * data.sample_weight[:, None]
    return Progress(weights=weights, division=weights.copy(order="F") if temperature > 1.0 else None)
