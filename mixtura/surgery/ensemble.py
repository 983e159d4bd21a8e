"""Language models trained apart, asked together: each weighted by how well it has predicted the text so far."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from mixtura.errors import UserError


class Ensemble(nn.Module):
    """Next-token probabilities of several models, weighted by the posterior of their domains.

    Before token t model d has weight p(d) * prod_{s<t} p_d(x_s | x_<s), normalised over the models: the more likely it
    found the text so far, the more it says about what comes. The probability of a whole text is thus the mean, by the
    prior, of what the models give it.

    Source: Li et al. 2022 (Branch-Train-Merge), section 2.2; Gururangan et al. 2023, equation 2.

    Args:
        models: each token ids (B, L) -> logits (B, L, V), causal.
        prior: p(d), one for each; None: the same for all.

    Shapes: ids int64 (B, L) -> log-probabilities (B, L, V).

    Raises:
        UserError: no model, or a prior that is none.

    Example:
        >>> models = [nn.Embedding.from_pretrained(torch.tensor([[2.0, 0.0], [0.0, 2.0]])), nn.Embedding(2, 2)]
        >>> Ensemble(models)(torch.zeros(1, 3, dtype=torch.long)).shape
        torch.Size([1, 3, 2])
    """

    log_prior: Tensor

    def __init__(self, models: Sequence[nn.Module], *, prior: Sequence[float] | None = None) -> None:
        super().__init__()
        given = [1.0] * len(models) if prior is None else [float(share) for share in prior]
        if not models or len(given) != len(models) or min(given) < 0 or not sum(given) > 0:
            raise UserError(f"expected models, and a share of at least 0 for each of {len(models)}, got {given}")
        self.models = nn.ModuleList(models)
        self.register_buffer("log_prior", (torch.tensor(given) / sum(given)).log())

    def forward(self, ids_BL: Tensor, *, targets_BL: Tensor | None = None) -> Tensor:
        """Token ids (B, L) to log-probabilities of the next token (B, L, V); with targets, their mean nats."""
        logp_MBLV, weight_MBL = self._weigh(ids_BL)
        mixed: Tensor = (logp_MBLV + weight_MBL.unsqueeze(-1)).logsumexp(0)
        return mixed if targets_BL is None else nll_loss(mixed.flatten(0, 1), targets_BL.flatten())

    def posterior(self, ids_BL: Tensor) -> Tensor:
        """The models' weights after a whole text: (B, L) -> (B, number of models)."""
        return self._weigh(ids_BL)[1][:, :, -1].T.exp()

    def _weigh(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        logp_MBLV = torch.stack([model(ids_BL).float().log_softmax(-1) for model in self.models])
        next_B1 = ids_BL[:, 1:].unsqueeze(-1)
        seen_MBL = torch.stack([logp_BLV[:, :-1].gather(-1, next_B1).squeeze(-1) for logp_BLV in logp_MBLV])
        before_MBL = nn.functional.pad(seen_MBL.cumsum(-1), (1, 0))
        return logp_MBLV, (before_MBL + self.log_prior[:, None, None]).log_softmax(0)
