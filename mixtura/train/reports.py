"""Where each step's row of metrics goes: the file, TensorBoard, and what a person sees."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

from mixtura.train.board import Board
from mixtura.train.config import TrainConfig
from mixtura.train.metrics import MetricsFile
from mixtura.train.progress import Progress
from mixtura.train.run import Run


class Reports:
    """The reports of a run; of several processes only one is enabled.

    Args:
        run: whose reports.
        config: of the run.
        after_step: the step that the run goes on from.
        enabled: write and show at all.

    Example:
        >>> from pathlib import Path
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> with Reports(Run(Path("runs/a")), config=LanguageConfig(), after_step=0, enabled=False) as reports:
        ...     reports.write({"step": 1})
    """

    def __init__(self, run: Run, *, config: TrainConfig, after_step: int, enabled: bool) -> None:
        self._run, self._config, self._start, self._enabled = run, config, after_step, enabled
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._enabled:
            run, config, start = self._run, self._config, self._start
            with ExitStack() as opening:
                self._metrics = opening.enter_context(MetricsFile(run.metrics, after_step=start, advice=run.advice))
                board = Board(run.folder, enabled=config.tensorboard, after_step=start, advice=run.advice)
                self._board = opening.enter_context(board)
                self._progress = opening.enter_context(Progress(total=config.steps, done=start, units=config.units))
                self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write and show a step's row."""
        if self._enabled:
            if "val_loss" in row:
                self._progress.evaluated(row)
            self._metrics.write(row)
            self._board.write(row)
            self._progress.update(row)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        if self._enabled:
            self._metrics.sync()
