"""BLEU and chrF of translations, computed by sacrebleu, so that they can be compared with published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Score:
    """How near translations are to references, of all texts together.

    Attributes:
        bleu: from 0 to 100 (Papineni et al. 2002).
        chrf: from 0 to 100, chrF2 (Popović 2015).
        signatures: sacrebleu's words for what exactly it computed, of BLEU and of chrF.

    Example:
        >>> Score(bleu=30.0, chrf=50.0, signatures=("", "")).bleu
        30.0
    """

    bleu: float
    chrf: float
    signatures: tuple[str, str]


def require_sacrebleu() -> None:
    """Refuse to go on without sacrebleu; nothing is imported.

    Raises:
        UserError: it is not installed.

    Example:
        >>> require_sacrebleu()
    """
    if find_spec("sacrebleu") is None:
        raise UserError("translation needs sacrebleu, which is not installed; run: pip install 'mixtura[translate]'")


def score(translations: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU and chrF of some translations, one reference each.

    Raises:
        UserError: sacrebleu is not installed, or there are no translations, or not as many references.

    Example:
        >>> round(score(["It is what it is now."], ["It is what it is now."]).bleu)
        100
    """
    require_sacrebleu()
    if not translations or len(translations) != len(references):
        raise UserError(f"expected translations and as many references, got {len(translations)} and {len(references)}")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(), CHRF()
    scores = [metric.corpus_score(list(translations), [list(references)]).score for metric in (bleu, chrf)]
    return Score(bleu=scores[0], chrf=scores[1], signatures=(str(bleu.get_signature()), str(chrf.get_signature())))
