"""The command line, `mixtura COMMAND`: USAGE lists the commands."""

import contextlib
import dataclasses
import io
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mixtura.errors import UserError
from mixtura.train.arguments import (
    ConvertArguments,
    EvalArguments,
    GenerateArguments,
    RecipesArguments,
    ResumeArguments,
)

if TYPE_CHECKING:
    from mixtura.train.config import TrainConfig

Arguments = TypeVar("Arguments")

USAGE = """usage: mixtura COMMAND [...]

  train [RECIPE] [--section.field VALUE ...]   train; without a recipe: lm-tiny
  finetune RUN [--section.field VALUE ...]     train a run's best weights further, on other data perhaps
  resume RUN [--checkpoint last|best|STEP]     continue an interrupted run to the very same numbers
  eval RUN [--checkpoint best|last|STEP]       losses of a checkpoint on held-out data
  predict RUN DATA [--out FILE.csv]            what a checkpoint says of rows, texts or images without labels
  generate RUN --prompt TEXT                   write on from a prompt
  detect RUN IMAGE ... [--least-score 0.3]     find objects in images with a run's detector, as JSON
  translate RUN [--to LANGUAGE] < text         translate standard input line by line
  report RUN                                   look at a run's model again and rewrite its report.html
  plan [RECIPE] [--section.field VALUE ...]    memory of each rank and bytes sent in a step, before a run is started
  recipes                                      the recipes, what they cost and what they reach
  convert SOURCE TARGET [--format FAMILY]      read a Hugging Face checkpoint and write it anew, checked
  upcycle RUN [--num-experts 8] [--k 2]        a run with a dense model becomes one with mixtures
  prune RUN [--keep 0.5] [--by reap]           a run without the experts that matter least
  branch RUN [--steps 500]                     train one branch of a run for each domain of its text
  merge BRANCHES [--steps N]                   average, ensemble and mixture of branches, compared
  bench [--dim 512] [--tokens 2048] [...]      time a layer with each kernel that can run here, beside a dense MLP

`mixtura COMMAND --help` tells more. --debug, anywhere, shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 130 after a Ctrl-C.

    Example:
        >>> main(["fly"])
        2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal's character set may lack what a model writes
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(given)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(_sender(), *str(error).splitlines(), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"mixtura: {interrupt}" if interrupt.args else "mixtura: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _sender() -> str:
    """Who speaks: of several processes, which."""
    return f"mixtura: rank {os.environ['RANK']}:" if os.environ.get("WORLD_SIZE", "1") != "1" else "mixtura:"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A legal surprise, without the place in the code where it was noticed."""
    print("mixtura: warning:", message, file=sys.stderr)


def _run(given: Sequence[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return
    if given[0] == "--version":
        from mixtura import __version__

        print(__version__)
        return
    if given[0] not in COMMANDS:
        raise UserError(f"expected a command among {', '.join(COMMANDS)}; got {given[0]!r}; see mixtura --help")
    try:
        COMMANDS[given[0]](given[1:])
    except SystemExit:  # so ends the parser once it has printed a command's help; its errors are UserErrors by now
        return


def _train(arguments: Sequence[str]) -> None:
    from mixtura.train.loop import train

    _end(train(_recipe(arguments, command="train")))


def _recipe(arguments: Sequence[str], *, command: str) -> "TrainConfig":
    """A recipe with what the options change."""
    from mixtura.train.recipes import get_recipe

    has_name = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if has_name else ("lm-tiny", arguments)
    recipe = get_recipe(name)
    config = parse(type(recipe), rest, prog=f"mixtura {command} {name}", default=recipe)
    if config.recipe != name:
        told = f"got --recipe {config.recipe}; write: mixtura {command} {config.recipe}"
        raise UserError(f"expected the recipe before all options, {told}")
    return config


def _plan(arguments: Sequence[str]) -> None:
    from mixtura.train.plan import plan

    print(*plan(_recipe(arguments, command="plan")).lines(), sep="\n")


def _finetune(arguments: Sequence[str]) -> None:
    from mixtura.train.loop import train
    from mixtura.train.start import finetuned

    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: mixtura finetune RUN [--section.field VALUE ...]; `mixtura finetune RUN --help` lists the fields")
        return
    if not arguments or arguments[0].startswith("-"):
        raise UserError("expected the folder of a run before all options; write: mixtura finetune RUN")
    default = finetuned(arguments[0])
    _end(train(parse(type(default), arguments[1:], prog=f"mixtura finetune {arguments[0]}", default=default)))


def _resume(arguments: Sequence[str]) -> None:
    from mixtura.train.config import MeshConfig
    from mixtura.train.loop import resume

    given = parse(ResumeArguments, arguments, prog="mixtura resume")
    axes = {name: size for name in ("dp", "fsdp", "ep", "tp") if (size := getattr(given, name))}
    if (given.place or given.copies) and not given.ep:
        raise UserError("expected --ep with --place and --copies, got none; give the mesh to place experts on")
    mesh = MeshConfig(**axes, place=given.place, copies=given.copies) if axes else None
    _end(resume(given.run, checkpoint=given.checkpoint, mesh=mesh))


def _end(folder: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"report: {folder}/report.html")


def _eval(arguments: Sequence[str]) -> None:
    from mixtura.train.inspect import evaluate_run

    given = parse(EvalArguments, arguments, prog="mixtura eval")
    evaluation, units = evaluate_run(given.run, checkpoint=given.checkpoint)
    for group, loss in evaluation.with_mean().items():
        bits = f"  {loss / math.log(2):.4f} {units.loss.replace('nats', 'bits', 1)}" if "nats" in units.loss else ""
        print(f"{group:>12}  {loss:.4f} {units.loss}{bits}")
    for name, score in evaluation.scores.items():
        print(f"{name:>12}  {score:.4f}")


def _predict(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import PredictArguments, predict

    table, notes = predict(parse(PredictArguments, arguments, prog="mixtura predict"))
    print(table, end="")
    for note in notes:
        print(note, file=sys.stderr)


def _generate(arguments: Sequence[str]) -> None:
    from mixtura.train.inspect import generate_text

    given = parse(GenerateArguments, arguments, prog="mixtura generate")
    for text in generate_text(**dataclasses.asdict(given)):
        print(text, end="", flush=True)
    print()


def _detect(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import DetectArguments, detect

    for line in detect(parse(DetectArguments, arguments, prog="mixtura detect")):
        print(line)


def _translate(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import TranslateArguments, translate

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # what is not UTF-8 is refused by its line
    for line in translate(parse(TranslateArguments, arguments, prog="mixtura translate"), sys.stdin):
        print(line, flush=True)


def _report(arguments: Sequence[str]) -> None:
    from mixtura.train.inspect import rewrite_report

    given = parse(EvalArguments, arguments, prog="mixtura report")
    rewrite_report(given.run, checkpoint=given.checkpoint)
    _end(Path(given.run))


def _recipes(arguments: Sequence[str]) -> None:
    from mixtura.train.recipes import RECIPES, describe

    parse(RecipesArguments, arguments, prog="mixtura recipes")
    for name in RECIPES:
        print(f"{name}\n  " + describe(name).replace("\n", "\n  "))


def _convert(arguments: Sequence[str]) -> None:
    from mixtura.hub.checkpoint import convert

    given = parse(ConvertArguments, arguments, prog="mixtura convert")
    difference = convert(given.source, given.target, format=given.format or None, check=given.check)
    print(f"written: {given.target}")
    if difference is not None:
        print(f"transformers gives the same logits: relative difference {difference:.1e}")


def _upcycle(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import UpcycleArguments, upcycle

    print(f"run: {upcycle(parse(UpcycleArguments, arguments, prog='mixtura upcycle'))}")


def _prune(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import PruneArguments, prune

    print(f"run: {prune(parse(PruneArguments, arguments, prog='mixtura prune'))}")


def _branch(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import BranchArguments, branch

    print(f"branches: {branch(parse(BranchArguments, arguments, prog='mixtura branch'))}")


def _merge(arguments: Sequence[str]) -> None:
    from mixtura.train.commands import MergeArguments, merge

    print(f"run: {merge(parse(MergeArguments, arguments, prog='mixtura merge'))}")


def _bench(arguments: Sequence[str]) -> None:
    from mixtura.train.bench import BenchArguments, bench
    from mixtura.train.setup import require

    require("rich")
    bench(parse(BenchArguments, arguments, prog="mixtura bench"))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _train,
    "resume": _resume,
    "finetune": _finetune,
    "eval": _eval,
    "predict": _predict,
    "generate": _generate,
    "detect": _detect,
    "translate": _translate,
    "report": _report,
    "plan": _plan,
    "recipes": _recipes,
    "convert": _convert,
    "upcycle": _upcycle,
    "prune": _prune,
    "branch": _branch,
    "merge": _merge,
    "bench": _bench,
}


def parse(cls: type[Arguments], arguments: Sequence[str], *, prog: str, default: Arguments | None = None) -> Arguments:
    """Fill a dataclass from the command line: required fields by position, the others as --field VALUE.

    Raises:
        UserError: whatever the arguments get wrong, in one line.

    Example:
        >>> parse(EvalArguments, ["runs/a", "--checkpoint", "last"], prog="mixtura eval").checkpoint
        'last'
    """
    try:
        import tyro
    except ImportError as error:
        raise UserError("the command line needs more packages: pip install 'mixtura[train,plots]'") from error
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            return tyro.cli(
                cls,
                args=list(arguments),
                prog=prog,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.FlagConversionOff, tyro.conf.PositionalRequiredArgs),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_one_line(heard.getvalue())}; see {prog} --help") from None


def _one_line(box: str) -> str:
    """The parser's framed message as one line, up to its pointer to the help."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─ ")
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        if text:
            lines.append(text)
    return " ".join(lines)
