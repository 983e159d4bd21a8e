"""Compile the native CPU kernel: `python -m mixtura.kernels.build`. Nothing but a C++ compiler and this file is needed.

Each variant is the same source compiled for one set of machine instructions; which one runs is decided on the machine
that runs it, so a library built here works on any processor of the same family. OpenMP is not linked: torch has loaded
one, and the library asks the process for it.

Example:
    >>> [name for name, _ in variants("AMD64")], [name for name, _ in variants("arm64")]
    (['avx512_bf16', 'avx512', 'avx2', 'baseline'], ['baseline'])
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = Path(__file__).parent / "_native.so"
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra")


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message says which, and what the compiler wrote."""


def variants(machine: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names and compiler flags of the variants that make sense on a processor family (as `platform.machine()` says).

    Example:
        >>> variants("aarch64")
        (('baseline', ()),)
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return (("baseline", ()),)
    return (("avx512_bf16", (*_AVX512, "-mavx512bf16")), ("avx512", _AVX512), ("avx2", _AVX2), ("baseline", ()))


def fingerprint() -> str:
    """A hash of the sources, built into the library so that an outdated one is noticed.

    Example:
        >>> len(fingerprint())
        16
    """
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> str:
    """The C++ compiler: `$CXX`, or the first of c++, g++ and clang++ that is installed.

    Raises:
        BuildError: there is none.

    Example:
        >>> compiler()  # doctest: +SKIP
        '/usr/bin/c++'
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("expected a C++ compiler (c++, g++ or clang++, or $CXX), found none; install one, for example g++")


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own command line
    if result.returncode:
        raise BuildError(f"{command[0]} failed:\n{result.stderr.strip()}")


def build(library: Path = LIBRARY) -> Path:
    """Compile all variants and link them into one library; returns its path.

    Raises:
        BuildError: no compiler, or it failed.

    Example:
        >>> build()  # doctest: +SKIP
        PosixPath('mixtura/kernels/_native.so')
    """
    cxx, chosen = compiler(), variants(platform.machine())
    with tempfile.TemporaryDirectory() as folder:
        commands, objects = [], []

        def compile_to(name: str, source: str, *flags: str) -> None:
            objects.append(str(Path(folder) / f"{name}.o"))
            commands.append([cxx, *FLAGS, *flags, "-c", str(SOURCES / source), "-o", objects[-1]])

        for name, flags in chosen:
            compile_to(name, "variant.cpp", *flags, f"-DMIXTURA_VARIANT={name}", f'-DMIXTURA_NAME="{name}"')
        is_x86 = ("-DMIXTURA_X86",) if len(chosen) > 1 else ()
        compile_to("native", "native.cpp", f'-DMIXTURA_SOURCES="{fingerprint()}"', *is_x86)
        compile_to("plan", "plan.cpp")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        # Into place in one step: a process that has the old library open keeps it.
        linked = library.with_name(f"{library.name}.{os.getpid()}")
        _run([cxx, "-shared", *objects, "-o", str(linked), *(("-ldl",) if sys.platform == "linux" else ())])
        linked.replace(library)
    return library


def main() -> str | None:
    """Build; returns why there is no library, for `sys.exit`, or None.

    Example:
        >>> main()  # doctest: +SKIP
    """
    try:
        build()
    except BuildError as error:
        return f"mixtura: no native kernel: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
