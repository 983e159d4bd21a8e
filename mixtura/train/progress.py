"""What a person sees while a run trains: a live line on a terminal, plain lines anywhere else."""

from collections.abc import Mapping
from typing import Any

from mixtura.observe.metrics import imbalance
from mixtura.train.tasks.task import Units


def say(text: str) -> None:
    """Print a line.

    Example:
        >>> say("reading")
        reading
    """
    print(text, flush=True)


class Progress:
    """A progress bar with speed, time left, loss, imbalance and dropped share; a line for each evaluation.

    Example:
        >>> with Progress(total=2, done=0, units=Units(loss="nats", items="images", group="class")) as progress:
        ...     progress.say("hello")
        hello
    """

    def __init__(self, *, total: int, done: int, units: Units) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._units = units
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Bar(
            BarColumn(bar_width=24),
            # On a narrow terminal the bar shrinks first and the facts second; step and time left stay whole.
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=len("0:00:00"))),
            TextColumn("left", table_column=Column(no_wrap=True, min_width=len("left"))),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total, completed=done, facts="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a step's row of metrics."""
        self._bar.update(self._task, completed=row["step"], facts=step_facts(row, self._units))

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Print the line of an evaluation."""
        losses = row["val_loss"]
        groups = "  ".join(f"{name} {_show(value)}" for name, value in losses.items() if name != "mean")
        apart = f"  ({groups})" if len(losses) > 2 else ""
        scores = "".join(f"  {name} {_show(value)}" for name, value in row.get("val_score", {}).items())
        facts = step_facts(row, self._units)
        self.say(f"step {row['step']:>6}  val {_show(losses['mean'])} {self._units.loss}{apart}{scores}  {facts}")


def step_facts(row: Mapping[str, Any], units: Units) -> str:
    """A step's row of metrics in short.

    Example:
        >>> units = Units(loss="nats/byte", items="tokens", group="domain")
        >>> row = {"items_per_s": 1000.0, "loss": 1.5, "load": {"a": [0.5, 0.5]}, "dropped": {"a": 0.0}}
        >>> step_facts(row, units)
        '1,000 tokens/s  loss 1.500  imbalance 1.00  dropped 0.0%'
    """
    facts = f"{row['items_per_s']:,.0f} {units.items}/s  loss {_show(row['loss'])}"
    if row["load"]:
        worst = max(float(imbalance(load)) for load in row["load"].values())
        dropped = max(share or 0.0 for share in row["dropped"].values())
        facts += f"  imbalance {worst:.2f}  dropped {dropped:.1%}"
    return facts


def _show(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"
