"""What is checked and made before a run starts, so that nothing wrong shows up only after hours."""

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn

from mixtura.control import BalanceController
from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.train.config import TrainConfig
from mixtura.train.data.tokens import Corpus

# Package -> the extras that bring it, and nothing else that a command needs is missing then.
EXTRAS = {
    "safetensors": "train",
    "rich": "train",
    "jinja2": "train,plots",
    "plotly": "train,plots",
    "tensorboard": "tensorboard",
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
        >>> require_for_training(TrainConfig())
    """
    require("safetensors", "rich", "jinja2", "plotly", *(["tensorboard"] if config.tensorboard else []))


def check_start(config: TrainConfig) -> None:
    """Refuse what cannot be trained before any text is read and any folder is made.

    Raises:
        UserError: a missing package, a model that cannot be built, or sizes that belong to the data.

    Example:
        >>> check_start(TrainConfig(model=GPTConfig(num_experts=4, k=9, router="topk")))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: model: expected 1 <= k <= num_experts, got k=9 with num_experts=4; choose a smaller k
    """
    require_for_training(config)
    model, data, default = config.model, config.data, GPTConfig()
    if model.vocab_size not in (data.vocab_size, default.vocab_size):
        raise UserError(f"expected no --model.vocab-size, got {model.vocab_size}; set --data.vocab-size instead")
    if model.context not in (data.seq_len, default.context):
        raise UserError(f"expected no --model.context, got {model.context}; set --data.seq-len instead")
    with torch.device("meta"):  # no memory, no random numbers
        build_controller(build_model(config), config)


def fit_to_corpus(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The configuration with the model's vocabulary and context taken from the data.

    Raises:
        UserError: a domain has the name under which the mean over all domains is logged.
    """
    if "mean" in corpus.domains:
        raise UserError(
            "expected domains of any name but 'mean', which is the mean over all; rename that file or folder"
        )
    sizes = replace(config.model, vocab_size=corpus.tokenizer.vocab_size, context=config.data.seq_len)
    return replace(config, model=sizes)


def build_model(config: TrainConfig) -> GPT:
    """The run's model with fresh weights: the one place where the model's configuration becomes objects.

    Raises:
        UserError: a part refuses its arguments.

    Example:
        >>> build_model(TrainConfig()).config.num_experts
        16
    """
    try:
        return GPT(config.model, recompute_interval=config.recompute_interval)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    except TypeError as error:  # router_options are keyword arguments that the user names and gives
        raise UserError(f"model: expected the router's own --model.router-options, got: {error}") from error


def build_controller(model: nn.Module, config: TrainConfig) -> BalanceController | None:
    """The controller of the run's balance loss, or None where coefficients are fixed.

    Raises:
        UserError: values out of their range, or a loss that no layer has.

    Example:
        >>> build_controller(nn.Identity(), TrainConfig()) is None
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
