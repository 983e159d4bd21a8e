"""Kill ranks of a run under torchrun at random moments, and compare what comes out with a run that nobody disturbed.

    python -m tests.distributed.kills --kills 30

Each round starts a short run of two processes with experts apart, waits for a random time, and sends SIGKILL to a
random rank: in a step, while a checkpoint is written, before the first one. torchrun starts all ranks again, and the
run goes on from its last checkpoint. At the end every row of metrics must be that of the undisturbed run.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.train.tiny import command, rows

OPTIONS = {
    "mesh__ep": 2,
    "steps": 60,
    "checkpoint_interval": 10,
    "eval_interval": 30,
    "mesh__timeout": 20.0,
    "prompts": "a",
}


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the run under torchrun, which may start it again some times."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
        "--monitor-interval",
        "0.2",
    ]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "mixtura"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *command(folder, **OPTIONS)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ranks(launcher: int) -> list[int]:
    """The processes of the ranks: children of the launcher."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def disturbed(folder: Path, draw: random.Random, longest: float) -> tuple[str, float, int]:
    """A run in which one rank is killed: its output, when, and which."""
    process, moment, rank = start(folder), draw.uniform(0.5, longest), draw.randrange(2)
    time.sleep(moment)
    if len(pids := sorted(ranks(process.pid))) == 2:
        os.kill(pids[rank], signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    return output, moment, rank


def main() -> None:
    """Run the rounds and print what each gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outputs", type=Path, help="folder for what the runs that differ have written")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base, "undisturbed")
        folder.mkdir()
        began = time.time()
        process = start(folder)
        output, _ = process.communicate(timeout=1200)
        longest = time.time() - began
        assert process.returncode == 0, output
        expected = rows(folder / "runs" / "tiny")
        equal = 0
        for number in range(options.kills):
            folder = Path(base, str(number))
            folder.mkdir()
            output, moment, rank = disturbed(folder, draw, longest)
            found = rows(folder / "runs" / "tiny") if (folder / "runs" / "tiny").is_dir() else []
            equal += found == expected
            verdict = "equal" if found == expected else f"differs: {len(found)} rows of {len(expected)}"
            if found != expected and options.outputs is not None:
                options.outputs.mkdir(parents=True, exist_ok=True)
                (options.outputs / f"kill-{number}.txt").write_text(output)
            print(f"kill {number}: rank {rank} after {moment:.1f} of {longest:.1f} s: {verdict}", flush=True)
        print(f"{equal} of {options.kills} runs equal the undisturbed one")


if __name__ == "__main__":
    main()
