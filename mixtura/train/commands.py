"""What `mixtura predict | detect | translate | upcycle | prune | branch | merge` are given, and the call of each."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixtura.surgery.prune import Measure
from mixtura.train.operate import Next, prune_run, upcycle_run


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """What a checkpoint says of data without labels, as CSV: a line for each row, text or image, in their order.

    Example:
        >>> PredictArguments(run="runs/latest", data="new.csv").out
        ''
    """

    run: str
    """Folder of a run on a table, on labelled texts or on labelled images."""
    data: str
    """A table with the run's columns, without labels perhaps; a file of texts; a folder of images."""
    out: str = ""
    """The CSV file to write; empty: the terminal."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class UpcycleArguments(Next):
    """Make a dense run's model sparse and write it as a new run, which `mixtura resume` trains.

    Example:
        >>> UpcycleArguments(run="runs/dense").num_experts
        8
    """

    run: str
    """Folder of a run with a dense model."""
    num_experts: int = 8
    """E, experts of each mixture."""
    k: int = 2
    """K, experts per token."""
    init: Literal["upcycle", "drop", "noise", "split", "random", "cluster"] = "upcycle"
    """upcycle: copies; drop: copies with half of their units fresh; noise; split: slices; cluster: groups of units."""
    router: str = "topk"
    """A name in mixtura.routers.ROUTERS."""
    every: int = 1
    """Every n-th block becomes a mixture."""
    name: str = "upcycled"


@dataclass(frozen=True, kw_only=True)
class PruneArguments(Next):
    """Take the experts that matter least out of a run's model and write a new run, which `mixtura resume` trains.

    Example:
        >>> PruneArguments(run="runs/latest").by
        'reap'
    """

    run: str
    """Folder of a run with mixtures."""
    keep: float = 0.5
    """How many experts of each mixture stay; below 1: which share."""
    by: Measure = "reap"
    """What makes an expert matter: reap (mean weight times output), frequency, router_norm, random."""
    k: int = 0
    """Experts per token from now on; 0: as before."""
    batches: int = 16
    """Batches of training text to measure on."""
    name: str = "pruned"


@dataclass(frozen=True, kw_only=True)
class BranchArguments(Next):
    """Train one branch per domain from a run's model, each in a process of its own; called again, it goes on.

    Example:
        >>> BranchArguments(run="runs/seed").jobs
        2
    """

    run: str
    """Folder of the run to begin with."""
    steps: int = 500
    """Steps of each branch."""
    domains: tuple[str, ...] = ()
    """Domains of the run's text; empty: all."""
    clusters: int = 0
    """In place of the text's own domains, so many clusters of documents that are alike. 0: the text's own."""
    jobs: int = 2
    """Branches trained at a time; they share the cores."""
    name: str = "branches"
    """Folder of the branches, beside the run."""


@dataclass(frozen=True, kw_only=True)
class MergeArguments(Next):
    """Average, ensemble and mixture of branches, compared with them and with their seed on every domain.

    Example:
        >>> MergeArguments(branches="runs/branches").weights
        'uniform'
    """

    branches: str
    """A folder that `mixtura branch` wrote."""
    weights: Literal["uniform", "score", "posterior", "greedy"] = "uniform"
    """Of the average: uniform, by 1 / held-out loss, by posterior, or a greedy soup."""
    k: int = 2
    """Experts per token of the mixture."""
    router: str = "topk"
    """Router of the mixture."""
    name: str = "mixture"
    """Folder of the mixture's run, inside that of the branches."""


def predict(given: PredictArguments) -> tuple[str, Sequence[str]]:
    """`mixtura predict`: the CSV, or where it went, and what was counted while the data were read."""
    from mixtura.train.files import write_file
    from mixtura.train.inspect import predict_run  # late: chains of imports stay short

    said, table = predict_run(given.run, given.data, checkpoint=given.checkpoint), io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(said.columns)
    for row in zip(*said.columns.values(), strict=True):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    if not given.out:
        return table.getvalue(), said.notes
    write_file(Path(given.out), table.getvalue())
    return f"written: {given.out}\n", said.notes


@dataclass(frozen=True, kw_only=True)
class DetectArguments:
    """Find objects in images with a run's detector; one line of JSON for each image.

    Example:
        >>> DetectArguments(run="runs/latest", images=("street.jpg",)).least_score
        0.3
    """

    run: str
    """Folder of a run of a detector."""
    images: tuple[str, ...]
    """Image files."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    least_score: float = 0.3
    """Leave out what has a lower score."""


def detect(given: DetectArguments) -> Iterator[str]:
    """`mixtura detect`."""
    from mixtura.train.inspect import detect_objects  # late: chains of imports stay short

    found = detect_objects(given.run, given.images, checkpoint=given.checkpoint, least_score=given.least_score)
    return map(json.dumps, found)


@dataclass(frozen=True, kw_only=True)
class TranslateArguments:
    """Translate standard input line by line.

    Example:
        >>> TranslateArguments(run="runs/latest").beam
        4
    """

    run: str
    """Folder of a run of a translator."""
    to: str = ""
    """The language to translate to; empty: the only one there is."""
    checkpoint: str = "best"
    """best, last, or the step of a checkpoint."""
    beam: int = 4
    """Hypotheses at a time; 1: greedy."""
    alpha: float = 0.6
    """Length penalty; 0: none."""


def upcycle(given: UpcycleArguments) -> Path:
    """`mixtura upcycle`."""
    return upcycle_run(
        given.run,
        given,
        num_experts=given.num_experts,
        k=given.k,
        init=given.init,
        router=given.router,
        every=given.every,
    )


def prune(given: PruneArguments) -> Path:
    """`mixtura prune`."""
    return prune_run(given.run, given, keep=given.keep, by=given.by, k=given.k, batches=given.batches)


def branch(given: BranchArguments) -> Path:
    """`mixtura branch`."""
    from mixtura.train.branch import branch as run_branches  # late: chains of imports stay short

    return run_branches(given.run, given, domains=given.domains, clusters=given.clusters, jobs=given.jobs)


def merge(given: MergeArguments) -> Path:
    """`mixtura merge`."""
    from mixtura.train.branch import merge_branches  # late: chains of imports stay short

    return merge_branches(given.branches, given, weights=given.weights, k=given.k, router=given.router)


def translate(given: TranslateArguments, lines: Iterable[str]) -> Iterator[str]:
    """`mixtura translate`."""
    from mixtura.train.inspect import translate_lines  # late: chains of imports stay short

    return translate_lines(
        given.run, lines, to=given.to, checkpoint=given.checkpoint, beam=given.beam, alpha=given.alpha
    )
