"""What was seen on held-out data after training: assignments by group, coloured texts, and what the task shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.errors import UserError
from mixtura.observe.history import read_json
from mixtura.observe.panels import Panel, read_panel


@dataclass(frozen=True)
class Sample:
    """A held-out text in pieces (tokens) with the first-choice expert of each piece, by layer.

    Example:
        >>> Sample(domain="python", pieces=["def", " f"], experts={"blocks.1.ff": [3, 0]}).pieces
        ['def', ' f']
    """

    domain: str
    pieces: Sequence[str]
    experts: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Generated:
    """A text that the model wrote and the prompt that it continued.

    Example:
        >>> Generated(prompt="def ", text="f(x):").text
        'f(x):'
    """

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Everything in observations.json.

    Shapes:
        counts: by layer (G, E), assignments of held-out data by group ("domain") and expert.

    Example:
        >>> Observations(domains=["python"], counts={"blocks.1.ff": [[7, 9]]}, samples=[], generated=[]).domains
        ['python']
    """

    domains: Sequence[str]
    counts: Mapping[str, Sequence[Sequence[int]]]
    samples: Sequence[Sample]
    generated: Sequence[Generated]
    panels: Sequence[Panel] = ()


def read_observations(path: Path) -> Observations | None:
    """The observations of a run, cleaned; None when the file does not exist.

    Raises:
        UserError: the file is not JSON or its parts do not fit together.

    Example:
        >>> read_observations(Path("nowhere/observations.json")) is None
        True
    """
    if not path.is_file():
        return None
    raw = read_json(path)
    try:
        return Observations(
            domains=[str(domain) for domain in raw.get("domains", [])],
            counts={name: _counts(layer["counts"], raw["domains"]) for name, layer in raw.get("layers", {}).items()},
            samples=_samples(raw.get("samples", [])),
            generated=[Generated(str(item["prompt"]), str(item["text"])) for item in raw.get("generated", [])],
            panels=[read_panel(panel) for panel in raw.get("panels", [])],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"expected the parts of '{path}' to fit together, got {what}; delete it and make it again"
        ) from None


def _counts(rows: Any, domains: Sequence[str]) -> list[list[int]]:
    counts = [[int(count) for count in row] for row in rows]
    if len(counts) != len(domains) or len({len(row) for row in counts}) != 1 or not counts[0]:
        raise ValueError(f"counts are not a matrix of {len(domains)} domains x experts")
    if min(map(min, counts)) < 0 or not any(map(any, counts)):
        raise ValueError("counts are negative or all zero")
    return counts


def _samples(raw: Sequence[dict[str, Any]]) -> list[Sample]:
    samples = [_sample(sample) for sample in raw]
    if any(list(sample.experts) != list(samples[0].experts) for sample in samples):
        raise ValueError("samples name different layers")
    return samples


def _sample(raw: dict[str, Any]) -> Sample:
    pieces = [str(piece) for piece in raw["pieces"]]
    experts = {name: [int(expert) for expert in choices] for name, choices in raw["experts"].items()}
    for name, choices in experts.items():
        if len(choices) != len(pieces) or min(choices, default=0) < 0:
            raise ValueError(f"layer '{name}' has {len(choices)} experts for {len(pieces)} pieces, or a negative one")
    return Sample(domain=str(raw["domain"]), pieces=pieces, experts=experts)
