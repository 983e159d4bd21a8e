import subprocess
from pathlib import Path

import pytest

from tests.checks import files
from tests.checks.tree import read_tree, write_tree


def test_large_files_are_reported(tmp_path):
    write_tree(tmp_path, {"a.txt": "x" * 1_000_000, "b.txt": "x" * 1_000_001})
    (found,) = files.large_files(tmp_path, [Path("a.txt"), Path("b.txt")])
    assert found.startswith("b.txt:1: 1000001 bytes")


@pytest.mark.parametrize(
    "line",
    [
        "cd /" + "work/main",
        "open('/" + "root/x')",
        "=/" + "farm/a",
        "/" + "tmp/lab",
        "https://py" + "pi.org/simple",
        "--extra-index" + "-url=https://example.org",
        "--trusted" + "-host x",
    ],
)
def test_machine_paths_and_registries_are_reported(tmp_path, line):
    (tmp_path / "a.bin").write_bytes(b"\xff\n" + line.encode())
    (found,) = files.machine_paths(tmp_path, [Path("a.bin")])
    assert found.startswith("a.bin:2: names ")


@pytest.mark.parametrize("line", ["a/" + "work/b", "https://example.org/" + "tmp/x", "work/", "/roots/", "docs index"])
def test_relative_paths_and_links_pass(tmp_path, line):
    write_tree(tmp_path, {"a.md": line})
    assert files.machine_paths(tmp_path, [Path("a.md")]) == []


@pytest.mark.skipif(not files.has_git(Path(__file__).parents[2]), reason="needs git")
def test_tracked_lists_what_git_holds_or_would_add(tmp_path):
    write_tree(tmp_path, {".gitignore": "runs/\n", "a b.py": "", "gone.py": "", "runs/x": "", "docs/ü.md": ""})
    assert not files.has_git(tmp_path)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    write_tree(tmp_path, {"new.py": ""})
    (tmp_path / "gone.py").unlink()
    assert files.has_git(tmp_path)
    assert [str(path) for path in files.tracked(tmp_path)] == [".gitignore", "a b.py", "docs/ü.md", "new.py"]


LONG, SHORT = "x = 1\n" * 31, "x = 1\n" * 30


def test_modules_without_a_mirror_are_reported(tmp_path):
    tree = {
        "mixtura/short.py": SHORT,
        "mixtura/mirrored.py": LONG,
        "mixtura/train/__init__.py": LONG,
        "mixtura/train/data/bpe.py": LONG,
        "mixtura/excepted.py": LONG,
        "tests/test_mirrored.py": "",
        "tests/train/test_bpe.py": "",
    }
    modules = read_tree(write_tree(tmp_path, tree), ("mixtura",))
    found = files.unmirrored(tmp_path, modules, {"mixtura/excepted.py": "tests/contracts"})
    assert [issue.partition(";")[0] for issue in found] == [
        "mixtura/train/__init__.py:1: tests/train/test_init.py is missing",
        "mixtura/train/data/bpe.py:1: tests/train/data/test_bpe.py is missing",
    ]


def test_stale_exceptions_are_reported(tmp_path):
    modules = read_tree(write_tree(tmp_path, {"mixtura/a.py": LONG, "tests/test_a.py": ""}), ("mixtura",))
    found = files.unmirrored(tmp_path, modules, {"mixtura/a.py": "x", "mixtura/gone.py": "y"})
    assert [issue.partition(":")[0] for issue in found] == ["mixtura/a.py", "mixtura/gone.py"]


def test_test_folders_without_init_are_reported(tmp_path):
    tree = {"tests/__init__.py": "", "tests/a/__init__.py": "", "tests/a/test_x.py": "", "tests/b/test_x.py": ""}
    (found,) = files.folders_without_init(read_tree(write_tree(tmp_path, tree), ("tests",)))
    assert found.startswith("tests/b/test_x.py:1: tests/b/__init__.py is missing")
