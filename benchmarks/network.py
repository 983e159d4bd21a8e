"""A network between processes of one machine whose delay is real: each process in a network namespace of its own.

Every namespace has one interface (TUN), and a loop here carries its packets to the others so many milliseconds later.
It does what `tc netem` does, which not every kernel has; TCP, gloo and torch see an ordinary slow network. Needs Linux,
the right to make namespaces, and /dev/net/tun.
"""

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NEW_NETWORK, TUNSETIFF, TUN_WITHOUT_HEADER = 0x40000000, 0x400454CA, 0x1001
INTERFACE, LARGEST = "tun0", 60_000


def run_apart(commands: Sequence[Sequence[str]], *, delay_ms: float) -> None:
    """Run each command in its own namespace until all have ended; packets take so long from any to any other.

    Raises:
        subprocess.CalledProcessError: a command failed; the others are killed.
    """
    links, processes = [], []
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        for number, command in enumerate(commands):
            links.append(_enter(number))
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE}
            processes.append(subprocess.Popen(command, env=environment))
        _carry(links, processes, delay=delay_ms / 1e3)
    finally:
        for process in processes:
            process.kill()
        ctypes.CDLL(None).setns(home, NEW_NETWORK)
        for handle in (*links, home):
            os.close(handle)


def _enter(number: int) -> int:
    """Move this process, and so its next child, to a new namespace; gives the other end of its interface."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    link = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(link, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), TUN_WITHOUT_HEADER))
    for change in (
        "link set lo up",
        f"addr add 10.9.0.{number + 1}/24 dev {INTERFACE}",
        f"link set {INTERFACE} mtu {LARGEST} up",
    ):
        subprocess.run(["ip", *change.split()], check=True)
    return link


def _carry(links: list[int], processes: list[subprocess.Popen[bytes]], *, delay: float) -> None:
    """Carry packets until every process has ended."""
    under_way: list[tuple[float, int, int, bytes]] = []
    carried = 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            if process.poll():
                raise subprocess.CalledProcessError(process.returncode, process.args)
        while under_way and under_way[0][0] <= time.monotonic():
            *_, target, packet = heapq.heappop(under_way)
            os.write(links[target], packet)
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.05
        for link in select.select(links, [], [], wait)[0]:
            packet = os.read(link, LARGEST + 100)
            target = packet[19] - 1  # the last byte of an IPv4 address
            if packet[0] >> 4 == 4 and 0 <= target < len(links):
                carried += 1  # those of one moment keep their order
                heapq.heappush(under_way, (time.monotonic() + delay, carried, target, packet))


def bytes_sent() -> int:
    """What this process's namespace has sent to others, headers included."""
    for line in Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines():
        if line.strip().startswith(f"{INTERFACE}:"):
            return int(line.split(":")[1].split()[8])
    return 0
