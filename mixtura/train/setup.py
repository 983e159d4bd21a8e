"""What is checked and made before a run starts, so that nothing wrong shows up only after hours."""

from importlib.util import find_spec

import torch
from torch import nn

from mixtura.control import BalanceController
from mixtura.errors import UserError
from mixtura.train.config import TrainConfig

# Package -> the extras that bring it, and nothing else that a command needs is missing then.
EXTRAS = {
    "safetensors": "train",
    "rich": "train",
    "jinja2": "train,plots",
    "plotly": "train,plots",
    "tensorboard": "tensorboard",
    "pycocotools": "detect",
}


def require(*packages: str) -> None:
    """Refuse to start without the packages that will be needed later; nothing is imported.

    Raises:
        UserError: one is not installed; the message names the extra.

    Example:
        >>> require("safetensors")
    """
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                f"expected the package {package}, which is not installed; run: pip install 'mixtura[{EXTRAS[package]}]'"
            )


def require_for_training(config: TrainConfig) -> None:
    """Refuse to train without everything the run and its report will need; see `require`.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> require_for_training(LanguageConfig())
    """
    require("safetensors", "rich", "jinja2", "plotly", *(["tensorboard"] if config.tensorboard else []))


def check_start(config: TrainConfig) -> None:
    """Refuse what cannot be trained before any data are read and any folder is made.

    Raises:
        UserError: a missing package, a model that cannot be built, or sizes that belong to the data.

    Example:
        >>> from mixtura.models.gpt import GPTConfig
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> check_start(LanguageConfig(model=GPTConfig(num_experts=4, k=9, router="topk")))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: model: expected 1 <= k <= num_experts, got k=9 with num_experts=4; choose a smaller k
    """
    require_for_training(config)
    if not config.start:  # else the sizes are those of the run it starts from, and its data are the judge
        config.check()
    with torch.device("meta"):  # no memory, no random numbers
        build_controller(build_model(config), config)


def build_model(config: TrainConfig) -> nn.Module:
    """The run's model with fresh weights.

    Raises:
        UserError: a part refuses its arguments.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> build_model(LanguageConfig()).config.num_experts
        16
    """
    try:
        return config.build_model()
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    except TypeError as error:  # router_options are keyword arguments that the user names and gives
        raise UserError(f"model: expected the router's own --model.router-options, got: {error}") from error


def build_controller(model: nn.Module, config: TrainConfig) -> BalanceController | None:
    """The controller of the run's balance loss, or None where coefficients are fixed.

    Raises:
        UserError: values out of their range, or a loss that no layer has.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> build_controller(nn.Identity(), LanguageConfig()) is None
        True
    """
    if not config.balance.target:
        return None
    try:
        return BalanceController(
            model, loss=config.balance.loss, target=config.balance.target, rate=config.balance.rate
        )
    except UserError as error:
        raise UserError(f"balance: {error}") from error
