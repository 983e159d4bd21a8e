"""Numbers that tell how well the experts share the work: pure functions of arrays.

Every function takes torch tensors, numpy arrays or nested sequences and needs torch alone. Shapes use the letters
`T` tokens, `E` experts and `G` groups of text (domains).
"""

from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError

Array = Any  # a torch tensor, anything with tolist(), or nested sequences


def load_share(counts: Array) -> Tensor:
    """Share of all assignments that each expert got: `counts / counts.sum()`.

    Shapes:
        counts: (..., E) assignments (or shares) per expert; result: (..., E), sums to 1 over the experts.

    Raises:
        UserError: counts are empty, negative or not finite, or one row holds no assignment at all.

    Example:
        >>> load_share([1, 3]).tolist()
        [0.25, 0.75]
    """
    counts_xE = _counts(counts)
    total_x1 = counts_xE.sum(-1, keepdim=True)
    if bool((total_x1 == 0).any()):
        raise UserError("expected at least one assignment in every row of counts, got only zeros; leave such rows out")
    return counts_xE / total_x1


def imbalance(counts: Array) -> Tensor:
    """Load of the busiest expert over the mean load, `max(counts) / mean(counts)`: 1 is balanced, E is collapsed.

    With experts spread over machines this is the factor by which the slowest one keeps the others waiting.

    Shapes:
        counts: (..., E); result: (...).

    Raises:
        UserError: as `load_share`.

    Example:
        >>> imbalance([2, 2, 2, 2]).item(), imbalance([8, 0, 0, 0]).item()
        (1.0, 4.0)
    """
    share_xE = load_share(counts)
    return share_xE.amax(-1) * share_xE.shape[-1]


def coefficient_of_variation(counts: Array) -> Tensor:
    """Standard deviation of the load over its mean: 0 is balanced, `sqrt(E - 1)` is collapsed.

    Source: Shazeer et al. 2017 (arXiv:1701.06538), equations 6 and 7, which penalise its square. The deviation is
    that of the whole population of experts (divided by E).

    Shapes:
        counts: (..., E); result: (...).

    Raises:
        UserError: as `load_share`.

    Example:
        >>> coefficient_of_variation([1, 3]).item()
        0.5
    """
    share_xE = load_share(counts)
    return share_xE.std(-1, correction=0) * share_xE.shape[-1]


def dead_share(counts: Array) -> Tensor:
    """Share of the experts that got no assignment: 0 is good, a dead expert is memory without use.

    Shapes:
        counts: (..., E); result: (...).

    Raises:
        UserError: counts are empty, negative or not finite.

    Example:
        >>> dead_share([5, 0, 1, 0]).item()
        0.5
    """
    return (_counts(counts) == 0).double().mean(-1)


def entropy(probs: Array) -> float:
    """Mean entropy of the router's distributions in nats: `mean_t -sum_e p_te ln p_te`, from 0 (sure) to `ln E`.

    Shapes:
        probs: (T, E), each row sums to 1.

    Raises:
        UserError: probs are empty, negative or not finite, or a row does not sum to 1 (within 1e-3).

    Example:
        >>> round(entropy([[0.5, 0.5], [1.0, 0.0]]), 4)
        0.3466
    """
    probs_TE = _counts(probs)
    if probs_TE.dim() != 2 or bool(((probs_TE.sum(-1) - 1).abs() > 1e-3).any()):
        shape = tuple(probs_TE.shape)
        raise UserError(f"expected probs of shape (T, E) with rows that sum to 1, got {shape}; apply a softmax first")
    return float(-torch.xlogy(probs_TE, probs_TE).sum(-1).mean())


def dropped_share(kept: float, total: float) -> float:
    """Share of the assignments that a capacity limit dropped: `1 - kept / total`; 0 for a dropless layer.

    Raises:
        UserError: `total` is not positive or `kept` lies outside 0 ... total.

    Example:
        >>> dropped_share(75, 100)
        0.25
    """
    if not (total > 0 and 0 <= kept <= total):
        raise UserError(f"expected 0 <= kept <= total and total > 0, got kept={kept}, total={total}; count both again")
    return 1 - kept / total


def specialisation(counts: Array) -> Tensor:
    """Lift of each domain at each expert, `P(domain | expert) / P(domain)`: 1 means the expert does not care.

    The ratio is symmetric, so it is also `P(expert | domain) / P(expert)`. An expert (or domain) with no assignment
    has no distribution: its entries are NaN.

    Source: the lift of association rules (SIGMOD 1997, pages 255-264, there called interest).

    Shapes:
        counts: (G, E) assignments of each domain to each expert; result: (G, E), at least 0.

    Raises:
        UserError: counts are not a matrix, empty, negative, not finite or all zero.

    Example:
        >>> specialisation([[4, 0], [0, 4]]).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    joint_GE = _joint(counts)
    return joint_GE / (joint_GE.sum(1, keepdim=True) * joint_GE.sum(0, keepdim=True))


def mutual_information(counts: Array) -> float:
    """Mutual information of domain and expert in nats: `sum p(d, e) ln(p(d, e) / (p(d) p(e)))`; 0: no specialisation.

    Source: Cover and Thomas, Elements of Information Theory, equation 2.28.

    Shapes:
        counts: (G, E).

    Raises:
        UserError: as `specialisation`.

    Example:
        >>> round(mutual_information([[4, 0], [0, 4]]), 4), mutual_information([[1, 2], [1, 2]])
        (0.6931, 0.0)
    """
    joint_GE = _joint(counts)
    independent_GE = joint_GE.sum(1, keepdim=True) * joint_GE.sum(0, keepdim=True)
    # A cell that is possible under independence but never seen contributes 0 (x ln x -> 0); so does 0 over 0.
    ratio_GE = torch.where(joint_GE > 0, joint_GE / independent_GE, torch.ones_like(joint_GE))
    return max(0.0, float((joint_GE * ratio_GE.log()).sum()))


def normalised_mutual_information(counts: Array) -> float:
    """Mutual information over the entropy of the domain: the share of doubt about the domain that the expert removes.

    From 0 (the expert tells nothing) to 1 (it tells the domain); 0 when there is one domain only.

    Source: the uncertainty coefficient of Theil, 1970.

    Shapes:
        counts: (G, E).

    Raises:
        UserError: as `specialisation`.

    Example:
        >>> normalised_mutual_information([[4, 0], [0, 4]])
        1.0
    """
    domain_G = _joint(counts).sum(1)
    doubt = float(-torch.xlogy(domain_G, domain_G).sum())
    return mutual_information(counts) / doubt if doubt > 0 else 0.0


def _counts(values: Array) -> Tensor:
    if not isinstance(values, Tensor):
        plain = values.tolist() if hasattr(values, "tolist") else values
        try:
            values = torch.tensor(plain, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"expected numbers in rows of one length, got: {error}; pad or split") from None
    counts: Tensor = values.detach().to(device="cpu", dtype=torch.float64)
    if counts.dim() == 0 or counts.numel() == 0:
        raise UserError(f"expected shape (..., E) with at least one expert, got {tuple(counts.shape)}; check the axes")
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise UserError("expected finite numbers of at least 0, got negative or non-finite ones; filter them first")
    return counts


def _joint(counts: Array) -> Tensor:
    counts_GE = _counts(counts)
    if counts_GE.dim() != 2 or float(counts_GE.sum()) == 0:
        shape = tuple(counts_GE.shape)
        raise UserError(f"expected a (domains, experts) matrix with at least one assignment, got {shape}; count again")
    return counts_GE / counts_GE.sum()
