"""Several runs of EM from different divisions, of which the hopeless ones are given up early."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from mixtura.classical.columns import Array
from mixtura.classical.em import Progress, Step, Task, run
from mixtura.classical.progress import progress_line, say

ROUND = 20
# How many times its own predicted gain a run may lie behind the best one and still go on.
HOPE = 5.0


def best_run(
    task: Task,
    starts: Sequence[Callable[[], Progress]],
    *,
    n_jobs: int | None = None,
    verbose: int = 0,
    early_stop: bool = True,
) -> tuple[Progress, list[float]]:
    """Run EM from every start and give the best run with the final objectives of all (given up: as far as they came).

    The runs go in rounds, so that one whose predicted end lies far below what another has already reached is given up.
    The result does not depend on `n_jobs`.
    """
    active = list(range(len(starts)))
    progress: dict[int, Progress] = {}
    while active:
        jobs = (
            delayed(_continue)(task, progress.get(i, starts[i]), i if len(starts) > 1 else None, verbose)
            for i in active
        )
        progress.update(zip(active, Parallel(n_jobs=n_jobs)(jobs), strict=True))
        leader = max(progress, key=lambda i: progress[i].best_objective)
        best = progress[leader].best_objective
        # The leader may stand below its own best, after experts were re-seeded, and still goes on.
        active = [
            i
            for i in active
            if not finished(task, progress[i]) and (i == leader or not early_stop or predicted_end(progress[i]) >= best)
        ]
    objectives = [progress[i].best_objective for i in range(len(starts))]
    return progress[int(np.argmax(objectives))], objectives


def _continue(task: Task, progress: Progress | Callable[[], Progress], restart: int | None, verbose: int) -> Progress:
    begun = progress if isinstance(progress, Progress) else progress()

    def report(iteration: int, step: Step) -> None:
        if iteration % verbose == 0:
            say(progress_line(iteration, step, restart=restart))

    return run(task, begun, iterations=ROUND, report=report if verbose else None)


def finished(task: Task, progress: Progress) -> bool:
    """Whether a run converged or used up its iterations."""
    return progress.converged or len(progress.steps) >= task.max_iter


def predicted_end(progress: Progress) -> float:
    """Predict, with hope, the objective where a run will end: gains shrink by a constant rate (Aitken), times HOPE.

    A run that is still being cooled, or gains more from step to step, may end anywhere.
    """
    tail: Array = np.array([step.objective for step in progress.steps[-3:] if step.temperature == 1.0])
    if len(tail) < 3:
        return float(np.inf)
    before, last = np.diff(tail)
    if last <= 0:
        return float(tail[-1])
    if last >= before:
        return float(np.inf)
    return float(tail[-1] + HOPE * last * last / (before - last) + HOPE * last)
