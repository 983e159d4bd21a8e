"""A process that ends when the one that began it has gone; `test_branch.py` kills a real one."""

import os
import signal
import threading

from mixtura.train.worker import end_with


def test_it_waits_for_the_last_holder_of_the_other_end():
    mine, theirs = os.pipe()
    second = os.dup(theirs)
    heard = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: heard.set())
    try:
        watch = threading.Thread(target=end_with, args=(mine,))
        watch.start()
        os.write(theirs, b"ignored")
        os.close(theirs)
        assert not heard.wait(0.2)
        os.close(second)
        watch.join(10)
        assert heard.wait(10)
    finally:
        signal.signal(signal.SIGINT, previous)
        os.close(mine)
