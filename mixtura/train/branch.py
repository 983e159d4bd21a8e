"""Branch, train, merge: one run per domain from a common model, each in a process of its own, then one model again."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.surgery.ensemble import Ensemble
from mixtura.surgery.fuse import aim_routers, average_states, fuse, greedy_soup
from mixtura.train.checkpoint import list_checkpoints, step_of
from mixtura.train.data.tokens import prepare
from mixtura.train.files import write_file
from mixtura.train.operate import Next, derive, held_out, load, table, text_batches, train_on
from mixtura.train.progress import say
from mixtura.train.run import Run, open_run
from mixtura.train.tasks.language import LanguageTask
from mixtura.train.tasks.task import device_of

PLAN = "branches.json"
Weights = Literal["uniform", "score", "posterior", "greedy"]
Losses = Mapping[str, float]


def branch(path: str | Path, following: Next, *, domains: Sequence[str] = (), clusters: int = 0, jobs: int = 2) -> Path:
    """Train one branch per domain of a run's text, from the run's model; returns the folder of the branches.

    The branches know nothing of one another: each is a run in that folder, trained by a process of its own
    (`mixtura resume`) on its domain alone, `jobs` of them at a time, and writes what it says to `branch.log`. Called
    again, after a Ctrl-C, a crash or a power cut, it goes on with those that have not ended.

    Args:
        path: the folder of the run to begin with, the seed.
        following: the folder's name, steps, learning rate, and the seed's checkpoint.
        domains: of the seed's text; empty: all.
        clusters: in place of the text's own domains, so many clusters of documents (c-BTM: Gururangan et al. 2023).
        jobs: processes at a time; they share the cores.

    Raises:
        UserError: unknown domains, fewer than two, no steps, or a folder that holds the branches of another seed; a
            branch that failed, with its log.
    """
    seed = open_run(path)
    if following.steps < 1 or jobs < 1:
        raise UserError(f"expected steps and jobs of at least 1, got steps={following.steps} and jobs={jobs}")
    folder = seed.folder.parent / following.name
    runs = _make(seed, folder, following, domains=domains, clusters=clusters, jobs=jobs)
    _train_all([run for run in runs if not is_finished(run)], jobs=jobs)
    return folder


def read_branches(folder: Path) -> tuple[Run, dict[str, Run]]:
    """The seed and the branches, by domain, of a folder that `branch` wrote.

    Raises:
        UserError: it is none, or branches are missing or unfinished.

    Example:
        >>> read_branches(Path("runs/of-nobody"))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a folder of branches, got 'runs/of-nobody' without branches.json
    """
    plan = folder / PLAN
    if not plan.is_file():
        raise UserError(f"expected a folder of branches, got {str(folder)!r} without {PLAN}")
    try:
        facts = json.loads(plan.read_text(encoding="utf-8"))
        seed, names = Path(facts["seed"]), dict(facts["branches"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected what `mixtura branch` wrote in {plan}, got something else ({error})") from error
    branches = {domain: Run(folder / name) for domain, name in names.items()}
    if left := [domain for domain, run in branches.items() if not run.folder.is_dir() or not is_finished(run)]:
        raise UserError(
            f"expected finished branches, got unfinished ones: {', '.join(left)}; run `mixtura branch` again"
        )
    return open_run(folder / seed), branches


def is_finished(run: Run) -> bool:
    """Whether a run has the checkpoint of its last step."""
    present = list_checkpoints(run)
    return bool(present) and step_of(present[-1]) >= run.read_config().steps


def _make(seed: Run, folder: Path, following: Next, *, domains: Sequence[str], clusters: int, jobs: int) -> list[Run]:
    """Folders for those branches that have none, each with the seed's weights as its step 0."""
    model, config = load(seed, checkpoint=following.checkpoint)
    data = replace(config.data, path=config.data.path and str(Path(config.data.path).absolute()))
    cache = str(Path(data.cache).expanduser().absolute())
    data = replace(data, cache=cache, clusters=clusters or data.clusters, domains=())
    names = {domain: re.sub(r"[^\w.-]", "_", domain) for domain in domains or prepare(data, on_progress=say).domains}
    if len(names) < 2 or len(set(names.values())) < len(names):
        raise UserError(f"expected at least two domains with different names, got {', '.join(names) or 'none'}")
    plan = {"seed": os.path.relpath(seed.folder, folder), "branches": names}
    if (folder / PLAN).exists() and json.loads((folder / PLAN).read_text(encoding="utf-8")) != plan:
        raise UserError(f"expected the branches of this seed in {str(folder)!r}, got others; take another --name")
    write_file(folder / PLAN, json.dumps(plan, indent=2) + "\n")
    threads = config.threads or max(1, (os.cpu_count() or 1) // jobs)
    for domain, name in names.items():
        if not list_checkpoints(Run(folder / name)):
            shutil.rmtree(folder / name, ignore_errors=True)  # half made, by a run that was killed at its very start
            own = replace(following, name=name).config(config, out=folder, model=config.model)
            own = replace(own, data=replace(data, domains=(domain,)), threads=threads)
            derive(model.state_dict(), own.prepare())
    return [Run(folder / name) for name in names.values()]


def _train_all(runs: Sequence[Run], *, jobs: int) -> None:
    waiting, running, failed = list(runs), dict[Run, subprocess.Popen[bytes]](), list[Run]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = _start(run)
                say(f"{run.folder}: training, see branch.log there")
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    say(f"{run.folder}: {'ended' if process.returncode == 0 else 'failed'}")
                    failed += [run] if process.returncode else []
    finally:
        # After a Ctrl-C, which they have heard too, each saves a checkpoint.
        for process in running.values():
            process.wait()
    if failed:
        logs = ", ".join(shlex.quote(str(run.folder / "branch.log")) for run in failed)
        raise UserError(f"expected every branch to train, got failures, told in {logs}; mend it, and branch again")


def _start(run: Run) -> subprocess.Popen[bytes]:
    with (run.folder / "branch.log").open("ab") as log:
        command = [sys.executable, "-m", "mixtura", "resume", str(run.folder)]
        return subprocess.Popen(  # noqa: S603  # our own interpreter and arguments, without a shell in between
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )


def merge_branches(
    path: str | Path, following: Next, *, weights: Weights = "uniform", k: int = 2, router: str = "topk"
) -> Path:
    """Fuse branches and compare everything on every domain's held-out text; returns the folder of the mixture.

    Compared are the seed, each branch, their average, their ensemble (each weighted by how well it predicts the text so
    far), and the mixture whose experts are the branches' MLPs, before and after its own training. The routers of the
    mixture start from what each domain's training text gives them (`aim_routers`), or are those of the branches where
    these are mixtures. The table is written as comparison.md and comparison.json into the branches' folder; average and
    mixture are runs of their own there.

    Args:
        path: a folder that `branch` wrote.
        following: the mixture's name, its steps of training on all domains, its learning rate; which checkpoint of the
            branches.
        weights: of the average: "uniform"; "score": by 1 / mean held-out loss; "posterior": by the mean posterior over
            held-out text of all domains; "greedy": a greedy soup by the mean held-out loss.
        k: of the mixture; branches that are mixtures keep their own.
        router: of the mixture; branches that are mixtures keep their own.

    Raises:
        UserError: no such folder, unfinished branches, unknown weights, or a run of that name.
    """
    if weights not in get_args(Weights):
        raise UserError(f"expected weights among {', '.join(get_args(Weights))}, got {weights!r}")
    folder = Path(path)
    seed_run, runs = read_branches(folder)
    models, configs = zip(*(load(run, checkpoint=following.checkpoint) for run in runs.values()), strict=True)
    config = replace(configs[0], data=replace(configs[0].data, domains=()))
    task, device = config.prepare(on_progress=say), device_of(models[0])

    def judge(model: nn.Module) -> Losses:
        return held_out(model, task)

    rows: dict[str, Losses] = {"seed": judge(load(seed_run, checkpoint="best")[0])}
    rows |= {f"branch {domain}": judge(model) for domain, model in zip(runs, models, strict=True)}
    state = _average(models, weights, judge=judge, losses=list(rows.values())[1:], windows=_windows(task))
    own = replace(following, name="average").config(config, out=folder, model=config.model)
    _, average = derive(state, LanguageTask(own, task.corpus))
    rows[f"average ({weights})"] = judge(average.eval())
    rows["ensemble"] = judge(Ensemble(models))
    is_dense = config.model.num_experts == 0
    fused = fuse(models, method="mix", match="*.feed_forward" if is_dense else "", k=k, router=router)
    if is_dense:
        parts = [replace(config, data=replace(config.data, domains=(domain,))).prepare() for domain in runs]
        aim_routers(fused, [text_batches(part, count=4, device=device) for part in parts])
    sizes = _mixed(config.model, len(models), k=k, router=router)
    own = following.config(config, out=folder, model=sizes)
    mixture, model = derive(fused.state_dict(), LanguageTask(own, task.corpus))
    rows["mixture"] = judge(model.eval())
    if following.steps:
        rows[f"mixture, {following.steps} steps"] = judge(train_on(mixture))
    write_file(folder / "comparison.md", table(rows) + "\n")
    write_file(folder / "comparison.json", json.dumps(rows, indent=2) + "\n")
    say(table(rows))
    return mixture.folder


def _mixed(model: GPTConfig, branches: int, *, k: int, router: str) -> GPTConfig:
    if model.num_experts:
        return replace(model, num_experts=model.num_experts * branches)
    return replace(model, num_experts=branches, k=k, router=router, router_options={}, moe_every=1)


def _windows(task: LanguageTask) -> list[Tensor]:
    """One batch of held-out text of each domain: ids (B, L)."""
    return [next(iter(task.windows(domain))).inputs_BL for domain in task.corpus.domains]


@torch.no_grad()
def _average(
    models: Sequence[GPT],
    weights: Weights,
    *,
    judge: Callable[[nn.Module], Losses],
    losses: Sequence[Losses],
    windows: Sequence[Tensor],
) -> Mapping[str, Tensor]:
    states = [model.state_dict() for model in models]
    if weights == "greedy":
        probe = copy.deepcopy(models[0])

        def loss(state: Mapping[str, Tensor]) -> float:
            probe.load_state_dict(state)
            return judge(probe)["mean"]

        soup, chosen = greedy_soup(states, loss)
        say(f"the soup holds branches {', '.join(map(str, chosen))}")
        return soup
    shares = [1.0] * len(models)
    if weights == "score":
        shares = [1 / each["mean"] for each in losses]
    elif weights == "posterior":
        ensemble, device = Ensemble(models), device_of(models[0])
        shares = torch.stack([ensemble.posterior(ids_BL.to(device)).mean(0) for ids_BL in windows]).mean(0).tolist()
    say(f"weights of the average: {', '.join(f'{share / sum(shares):.3f}' for share in shares)}")
    return average_states(states, shares)
