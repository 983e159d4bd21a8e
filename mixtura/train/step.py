"""One optimizer step, whole on one screen, and evaluation on held-out text."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.losses.apply import collect_losses
from mixtura.models.gpt import GPT
from mixtura.observe.record import record
from mixtura.routers import update_biases
from mixtura.train.config import TrainConfig
from mixtura.train.data.stream import Batch, validation_batches
from mixtura.train.data.tokens import Corpus
from mixtura.train.metrics import StepResult
from mixtura.train.optim import lr_share, set_lr


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass: autocast to bf16, or nothing for fp32.

    Example:
        >>> with autocast(TrainConfig(precision="bf16"), torch.device("cpu")):
        ...     torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    config: TrainConfig,
    step: int,
    bytes_V: Tensor,
) -> StepResult:
    """Forward, backward, clip, update: one optimizer step over `config.accumulate` micro-batches.

    Args:
        model: in training mode.
        optimizer: of `build_optimizer`.
        batches: micro-batches without end.
        config: the run.
        step: number of the step, from 0.
        bytes_V: float (V,), bytes of text that each token stands for.
    """
    device = bytes_V.device
    share = lr_share(step, steps=config.steps, warmup=config.optim.warmup, min_lr=config.optim.min_lr)
    set_lr(optimizer, share)
    nats, num_bytes, tokens = torch.zeros((), device=device), torch.zeros((), device=device), 0
    aux: dict[str, Tensor] = {}
    with record(model) as log:
        for _ in range(config.accumulate):
            batch = next(batches)
            inputs_BL, targets_BL = batch.inputs_BL.to(device), batch.targets_BL.to(device)
            with autocast(config, device), collect_losses(model) as losses:
                logits_BLV = model(inputs_BL)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten())
            total = loss + losses.total().to(device)
            (total / config.accumulate).backward()
            tokens += targets_BL.numel()
            nats += loss.detach() * targets_BL.numel()
            num_bytes += bytes_V[targets_BL].sum()
            for name, value in losses.means().items():
                aux[name] = aux.get(name, 0) + value / config.accumulate
    max_norm = config.optim.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    update_biases(model)
    return StepResult(
        nats=nats,
        num_bytes=num_bytes,
        tokens=tokens,
        lr=config.optim.lr * share,
        grad_norm=grad_norm,
        aux=aux,
        log=log,
    )


@torch.no_grad()
def evaluate(model: GPT, corpus: Corpus, *, config: TrainConfig, bytes_V: Tensor) -> dict[str, float]:
    """Nats per byte on every domain's held-out text, and their plain mean under "mean".

    The model is in evaluation mode meanwhile; random numbers are neither drawn nor disturbed.
    """
    device, was_training = bytes_V.device, model.training
    model.eval()
    result = {}
    for domain in corpus.domains:
        nats, num_bytes = torch.zeros((), device=device), torch.zeros((), device=device)
        for batch in validation_batches(
            corpus,
            domain,
            batch_size=config.data.batch_size,
            seq_len=config.data.seq_len,
            max_tokens=config.data.val_tokens,
        ):
            targets_BL = batch.targets_BL.to(device)
            with autocast(config, device):
                logits_BLV = model(batch.inputs_BL.to(device))
            nats += F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), reduction="sum")
            num_bytes += bytes_V[targets_BL].sum()
        result[domain] = (nats / num_bytes).item()
    model.train(was_training)
    result["mean"] = sum(result.values()) / len(result)
    return result
