"""Moments at which a training process ends at once, as in a power cut: no handler, no clean-up.

Each function arms one of them in the process that then trains.
"""

import os
import shutil
import signal
import sys
from multiprocessing import get_context

import torch

from mixtura.cli import main
from mixtura.train import checkpoint
from mixtura.train.metrics import MetricsFile

# Children are forked from a server that has imported torch once and runs no threads.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.train.kills", "mixtura.train.loop", "tyro", "rich.progress", "tokenizers", "torch._dynamo"]
)


def run_until_killed(arm, arguments):
    """Run a command in a process of its own; returns its exit code, which is negative for a signal."""
    process = CONTEXT.Process(target=_run, args=(arm, arguments))
    process.start()
    process.join(timeout=60)
    return process.exitcode


def _run(arm, arguments):
    arm()
    sys.exit(main(arguments))


def die():
    """End this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_checkpoint():
    """Halfway through the second checkpoint: its weights are written, its state in part."""
    save, calls = torch.save, []

    def half(state, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a state")
            die()
        save(state, path)

    torch.save = half


def in_line():
    """Halfway through a line of metrics."""
    write = MetricsFile.write

    def half(self, row):
        if row["step"] == 14:
            self._file.write(b'{"step": 14, "tok')
            die()
        write(self, row)

    MetricsFile.write = half


def before_first_checkpoint():
    """After the third step."""
    write = MetricsFile.write

    def last(self, row):
        write(self, row)
        if row["step"] == 3:
            die()

    MetricsFile.write = last


def before_link():
    """A new best checkpoint is there, and the link still shows the one before."""
    checkpoint.point_link = lambda *_: die()


def in_deletion():
    """Halfway through the deletion of an old checkpoint."""
    remove = shutil.rmtree

    def half(path, *rest, **options):
        if ".old-" in str(path):
            next(path.iterdir()).unlink()
            die()
        remove(path, *rest, **options)

    shutil.rmtree = half


def any_time():
    """Some milliseconds after the first new step, wherever that is."""
    write = MetricsFile.write

    def first(self, row):
        write(self, row)
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.037)

    MetricsFile.write = first
