"""Recipes on tables."""

from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.tabular import TabularConfig


def tabular() -> TabularConfig:
    """Several labels of one table by shared experts under a gate for each: Census-Income, or your own CSV or Parquet.

    Your own: `--data.path orders.csv --data.labels returned stars:multiclass`.

    Cost: about a minute on one CPU core. Result: docs/multitask.md.

    Example:
        >>> tabular().model.architecture
        'mmoe'
    """
    return TabularConfig(
        recipe="tabular",
        optim=OptimConfig(lr=4e-3, weight_decay=1e-2, warmup=60),
        steps=585,  # three epochs of Census-Income
        eval_interval=195,
        checkpoint_interval=195,
    )
