"""TensorBoard events of a run: the only place that knows TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.errors import UserError


class Board:
    """Writes each step's scalars as TensorBoard events; does nothing where it is not enabled.

    Raises:
        UserError: enabled, and TensorBoard is not installed.

    Example:
        >>> Board(Path("runs/a"), enabled=False).write({"step": 1, "loss": 2.0})
    """

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--tensorboard needs TensorBoard, which is not installed: pip install 'mixtura[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one step's row of metrics."""
        if self._writer is None:
            return
        for name, value in row.items():
            if isinstance(value, dict):
                for key, part in value.items():
                    if isinstance(part, int | float):
                        self._writer.add_scalar(f"{name}/{key}", part, row["step"])
            elif isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Finish the events file."""
        if self._writer is not None:
            self._writer.close()
