"""TensorBoard events of a run: the only place that knows TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from mixtura.errors import UserError
from mixtura.train.files import writing


class Board:
    """Writes each step's scalars as TensorBoard events; does nothing where it is not enabled.

    Args:
        folder: the run's.
        enabled: write at all.
        after_step: the step that a resumed run goes on from; TensorBoard hides what an earlier try wrote after it.
        advice: ends the message when nothing can be written.

    Raises:
        UserError: enabled, and TensorBoard is not installed; a full disk.

    Example:
        >>> Board(Path("runs/a"), enabled=False, after_step=0, advice="").write({"step": 1, "loss": 2.0})
    """

    def __init__(self, folder: Path, *, enabled: bool, after_step: int, advice: str) -> None:
        self._folder, self._advice = folder, advice
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--tensorboard needs TensorBoard, which is not installed: pip install 'mixtura[tensorboard]'"
            ) from error
        with self._writing():
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with self._writing():
                self._writer.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one step's row of metrics."""
        if self._writer is None:
            return
        with self._writing():
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["step"])

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._folder, what="TensorBoard's events", advice=self._advice)


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row: by name, or by name/key where a name holds several."""
    for name, value in row.items():
        parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        for path, part in parts.items():
            if isinstance(part, int | float) and path != "step":
                yield path, part
