"""What the commands that look at a run are given: a field is an option, its text the help."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """Continue an interrupted run to the very same numbers as if it had never stopped.

    Example:
        >>> ResumeArguments(run="runs/latest").checkpoint
        'last'
    """

    run: str
    """A run's folder."""
    checkpoint: str = "last"
    """last, best, or the step of a checkpoint; what came after it is dropped."""
    dp: int = 0
    """Processes along this axis of the mesh; where no axis is given, the mesh is that of the run."""
    fsdp: int = 0
    """As dp."""
    ep: int = 0
    """As dp."""
    tp: int = 0
    """As dp."""
    place: bool = False
    """With ep: place the experts by the loads that the run measured."""
    copies: int = 0
    """With place: so many further copies of the busiest experts in each mixture."""


@dataclass(frozen=True)
class EvalArguments:
    """Look at one checkpoint of a run.

    Example:
        >>> EvalArguments("runs/latest").checkpoint
        'best'
    """

    run: str
    """A run's folder."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Write on from a prompt; the text appears as it is drawn.

    Example:
        >>> GenerateArguments(run="runs/latest").temperature
        0.8
    """

    run: str
    """A run's folder."""
    prompt: str = ""
    """Text to continue; empty: a new document."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    max_tokens: int = 400
    """Tokens to write at most."""
    temperature: float = 0.8
    """0: always the likeliest token; higher: more random."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0: all."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, what they cost and what they reach.

    Example:
        >>> RecipesArguments()
        RecipesArguments()
    """


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Read a Hugging Face checkpoint and write it anew, as another family where that can express it.

    Example:
        >>> ConvertArguments(source="smollm", target="converted").check
        True
    """

    source: str
    """A folder with config.json and safetensors, or a GGUF file."""
    target: str
    """A new folder."""
    format: str = ""
    """mixtral, qwen3_moe, ...; empty: the family that it is."""
    check: bool = True
    """Let transformers read the result, and compare the logits."""
