"""What torch.compile must leave to Python. Importing this imports the compiler: only code that is being traced does."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[untyped-decorator]  # torch leaves it untyped
    reason="an open mixtura.record, replay or collect_losses block, or ModuleExperts, runs Python inside the layer; "
    'compile without fullgraph=True, or open torch.compiler.set_stance("force_eager") around the call'
)
def call(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function outside the graph.

    Example:
        >>> call(max, 1, 2)
        2
    """
    return run(*arguments)
