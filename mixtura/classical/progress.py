"""The lines that a verbose fit prints."""

from mixtura.classical.em import Step


def progress_line(iteration: int, step: Step, *, restart: int | None = None) -> str:
    """Say in one line where EM stands.

    Example:
        >>> progress_line(12, Step(temperature=1.0, objective=-100.5, log_likelihood=-100.25), restart=3)
        'restart 3  iteration 12  log-likelihood -100.25  objective -100.5'
    """
    parts = [f"iteration {iteration}", f"log-likelihood {step.log_likelihood:.8g}", f"objective {step.objective:.8g}"]
    if restart is not None:
        parts.insert(0, f"restart {restart}")
    if step.temperature > 1.0:
        parts.append(f"temperature {step.temperature:.3g}")
    if step.reseeded:
        parts.append(f"re-seeded {', '.join(map(str, step.reseeded))}")
    return "  ".join(parts)


def say(text: str) -> None:
    """Print one line at once.

    Example:
        >>> say("iteration 1")
        iteration 1
    """
    print(text, flush=True)
