"""Files of the checkout: small, free of machine paths, each module with a test that mirrors it."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.checks.tree import Module

LARGEST = 1_000_000
MIRRORED_ABOVE = 30
# Assembled, so that this file passes its own check.
MACHINE_PATH = re.compile((r"(?<![\w.~/-])/(?:" + "work|root|farm|tmp" + ")/").encode())
REGISTRY = re.compile(
    "|".join(
        re.escape(host) + suffix
        for host, suffix in [
            ("py" + "pi.org/simple", ""),
            ("files." + "pythonhosted.org", ""),
            ("download." + "pytorch.org", ""),
            ("registry." + "npmjs.org", ""),
            ("proxy." + "golang.org", ""),
            ("--trusted" + "-host", ""),
            ("index" + "-url", r"\s*[=\s]\s*http"),
        ]
    ).encode()
)


def has_git(root: Path) -> bool:
    """Whether `root` is a git checkout on a machine with git; elsewhere nobody knows which files are tracked."""
    return (root / ".git").exists() and shutil.which("git") is not None


def tracked(root: Path) -> list[Path]:
    """List the files that git tracks or would add, so that a mistake shows before the commit; sorted, relative."""
    # A checkout that another user owns is read, not trusted: ls-files runs nothing of it.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    paths = sorted({Path(name) for name in listed.split("\0") if name})
    return [path for path in paths if (root / path).is_file()]


def large_files(root: Path, paths: list[Path]) -> list[str]:
    """Report files above 1 MB."""
    return [
        f"{path}:1: {size} bytes, at most {LARGEST}; make it at run time, or leave it out"
        for path in paths
        if (size := (root / path).stat().st_size) > LARGEST
    ]


def machine_paths(root: Path, paths: list[Path]) -> list[str]:
    """Report absolute paths of somebody's machine and hosts of package registries."""
    issues = []
    for path in paths:
        for number, line in enumerate((root / path).read_bytes().splitlines(), 1):
            for found in (MACHINE_PATH.search(line), REGISTRY.search(line)):
                if found:
                    text = found[0].decode()
                    issues.append(
                        f"{path}:{number}: names {text!r}; use a relative path, or leave it to pip's settings"
                    )
    return issues


def unmirrored(root: Path, modules: Mapping[str, Module], covered_elsewhere: Mapping[str, str]) -> list[str]:
    """Report modules of more than 30 lines without the test file that mirrors them, and exceptions that are stale.

    `mixtura/train/data/bpe.py` is mirrored by `tests/train/data/test_bpe.py`, an `__init__.py` by `test_init.py`.
    """
    issues = []
    for module in modules.values():
        path = Path(module.path)
        mirror = Path("tests", *path.parts[1:-1], f"test_{path.stem.strip('_')}.py")
        exists, excepted = (root / mirror).is_file(), module.path in covered_elsewhere
        if exists and excepted:
            issues.append(f"{module.path}:1: {mirror} exists, yet the exception table has it; delete the entry")
        elif not exists and not excepted and len(module.lines) > MIRRORED_ABOVE:
            issues.append(f"{module.path}:1: {mirror} is missing; write it, or say in the table what covers it")
    paths = {module.path for module in modules.values()}
    issues += [
        f"{path}:1: excepted, but there is no such file; delete the entry"
        for path in covered_elsewhere
        if path not in paths
    ]
    return issues


def folders_without_init(modules: Mapping[str, Module]) -> list[str]:
    """Report folders of test files without `__init__.py`: two files of one name would shadow each other."""
    folders = {
        str(Path(module.path).parent): module.path for module in modules.values() if module.path.startswith("tests/")
    }
    known = {module.path for module in modules.values()}
    return [
        f"{path}:1: {folder}/__init__.py is missing; add it with a one-line docstring"
        for folder, path in sorted(folders.items())
        if f"{folder}/__init__.py" not in known
    ]
