"""The one place where classical meets matplotlib."""

from typing import Any

from mixtura.errors import UserError


def new_axes(*, width: float = 6.0, height: float = 4.0) -> Any:
    """Give the Axes of a new figure, sizes in inches; raises UserError where matplotlib is missing.

    Example:
        >>> new_axes(width=3.0).figure.get_figwidth()
        np.float64(3.0)
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("expected matplotlib for a plot, got none; pip install 'mixtura[plots]'") from error
    # No pyplot: nothing global is touched, no window is opened, and the figure goes when nobody holds it.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.subplots()
