"""What every rank needs, imported once by the process that all ranks are forked from."""

import torch.distributed.checkpoint
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401  # importing is the purpose

import mixtura.models.gpt
import mixtura.observe.record
import mixtura.routers  # noqa: F401  # importing is the purpose
