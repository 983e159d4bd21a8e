"""A branch's process: it resumes a run as the command does, and ends when the process that began it has gone."""

import os
import runpy
import signal
import sys
import threading


def end_with(parent: int) -> None:
    """Wait until nobody holds the other end of a pipe any more, then end this process as a Ctrl-C would.

    The system closes the parent's end however the parent came to its end, so that not even a kill leaves a branch
    training on. A run saves a checkpoint first, and `mixtura branch` goes on from there.

    Args:
        parent: the end to read from; nothing is written to it.

    Example:
        >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)
        >>> mine, theirs = os.pipe()
        >>> os.close(theirs)
        >>> try:
        ...     end_with(mine)
        ... except KeyboardInterrupt:
        ...     print("ended")
        ended
        >>> _ = signal.signal(signal.SIGINT, before)
    """
    while os.read(parent, 1):
        pass
    signal.raise_signal(signal.SIGINT)


def main(folder: str) -> None:
    """`mixtura resume FOLDER` beside a watch on the standard input."""
    # What a shell starts in the background ignores a Ctrl-C, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    sys.argv = ["mixtura", "resume", folder]
    runpy.run_module("mixtura", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
