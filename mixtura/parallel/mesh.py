"""Meshes of ranks: where ranks meet, which axes there are, which combinations are legal, and all axes of a part."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout  # a mesh takes no time-out in a public way
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]  # public in the documentation

from mixtura.errors import UserError

# Outermost first: neighbours in the last axis talk most, and are on one machine.
AXES = ("dp", "fsdp", "ep", "tp")


def make_mesh(
    *, dp: int = 1, fsdp: int = 1, ep: int = 1, tp: int = 1, device_type: str = "cpu", timeout: float | None = None
) -> DeviceMesh:
    """A mesh over all ranks of the process group with every axis of `AXES`, those not used of size 1.

    Args:
        dp: ranks (or groups of them) with a copy of everything.
        fsdp: ranks over which parameters, gradients and optimizer state are cut (ZeRO-3).
        ep: ranks over which the experts are spread.
        tp: ranks over which each expert's hidden width is cut.
        device_type: "cpu", "cuda".
        timeout: seconds that a rank waits for another of its axis; None: torch's own half an hour, whatever the
            process group has.

    Raises:
        UserError: a size below 1, or sizes whose product is not the number of ranks.

    Example:
        >>> with one_process():
        ...     make_mesh().mesh_dim_names
        ('dp', 'fsdp', 'ep', 'tp')
    """
    sizes = dict(zip(AXES, (dp, fsdp, ep, tp), strict=True))
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"expected mesh axes of at least 1, got {name}={size}")
    if not dist.is_initialized():
        raise UserError("expected a process group, got none; start with torchrun and call dist.init_process_group()")
    product, world = dp * fsdp * ep * tp, dist.get_world_size()
    if product != world:
        shown = " * ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1"
        raise UserError(f"expected a mesh of {world} ranks, got {shown} = {product}; sizes multiply to the world size")
    mesh = init_device_mesh(device_type, (dp, fsdp, ep, tp), mesh_dim_names=AXES)
    if timeout is not None:
        for name in AXES:
            _set_pg_timeout(timedelta(seconds=timeout), mesh.get_group(name))
    return mesh


def complete(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks with every axis of `AXES`, those that the mesh lacks of size 1.

    Raises:
        UserError: axes without names, with other names, or in another order than `AXES`; a part of a larger mesh.

    Example:
        >>> with one_process():
        ...     complete(init_device_mesh("cpu", (1,), mesh_dim_names=("ep",))).mesh_dim_names
        ('dp', 'fsdp', 'ep', 'tp')
    """
    names = mesh.mesh_dim_names or ()
    if unknown := [name for name in names if name not in AXES] or not names:
        raise UserError(f"expected a mesh with axes among {', '.join(AXES)}, got {unknown if names else 'no names'}")
    if list(names) != [name for name in AXES if name in names]:
        raise UserError(f"expected the axes in the order {', '.join(AXES)}, got {', '.join(names)}")
    if mesh.size() != dist.get_world_size():
        raise UserError(f"expected a mesh of all {dist.get_world_size()} ranks, got one of {mesh.size()}")
    if names == AXES:
        return mesh
    sizes = dict(zip(names, mesh.shape, strict=True))
    shape = tuple(sizes.get(name, 1) for name in AXES)
    return DeviceMesh(mesh.device_type, mesh.mesh.view(shape), mesh_dim_names=AXES)


def meeting_place(*, timeout: float = 300.0) -> dict[str, Any]:
    """Where ranks that torchrun may start again find one another: arguments of `torch.distributed.init_process_group`.

    torchrun's store outlives the processes, and with it the addresses of those that were killed: who read them before
    their successors had written their own would knock on closed doors until all restarts are used up. Each attempt
    therefore meets in a part of the store of its own.

    Args:
        timeout: seconds that a rank waits for what another writes there.

    Returns:
        store, rank and world_size; nothing where torchrun lends no store, and the ranks meet as torch says.

    Example:
        >>> meeting_place()  # without torchrun
        {}
    """
    known = os.environ
    if known.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = known["MASTER_ADDR"], int(known["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))
    own = PrefixStore(f"mixtura/attempt-{known.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return {"store": own, "rank": int(known["RANK"]), "world_size": int(known["WORLD_SIZE"])}


@contextmanager
def one_process(backend: str = "gloo") -> Iterator[None]:
    """Inside the block this process is a group of its own: for examples, and to try a layout's code alone.

    Example:
        >>> with one_process():
        ...     dist.get_world_size()
        1
    """
    with tempfile.TemporaryDirectory() as folder:
        meet = Path(folder, "meet").as_uri()
        dist.init_process_group(backend, init_method=meet, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
