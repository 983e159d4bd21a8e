"""The rules of docs/design.md that a machine can check, over this checkout.

The checks live in tests/checks, where each is shown to fail on a small tree that breaks its rule.
"""

from pathlib import Path

import pytest

from tests.checks import api, files, free_import, hygiene, imports, size
from tests.checks.tree import read_tree

ROOT = Path(__file__).parents[1]
EVERYTHING = read_tree(ROOT)
PACKAGE = read_tree(ROOT, ("mixtura",))
TESTS = read_tree(ROOT, ("tests",))

# Modules of more than 30 lines without a test file of their own: path -> what covers them.
COVERED_ELSEWHERE: dict[str, str] = {}

# Files that must catch every error, because a library raises nothing more precise: path -> which, and why.
BROAD_EXCEPTS: dict[str, str] = {
    "mixtura/train/data/tokenizer.py": "tokenizers raises a bare Exception for every defect of a file",
}

needs_git = pytest.mark.skipif(not files.has_git(ROOT), reason="outside git nobody knows which files are tracked")


def passes(issues):
    assert not issues, "\n" + "\n".join(issues)


@pytest.mark.parametrize("check", [size.long_files, size.long_functions, hygiene.open_ends], ids=lambda c: c.__name__)
def test_every_python_file(check):
    passes(check(EVERYTHING))


@pytest.mark.parametrize(
    "check",
    [
        imports.wrong_direction,
        imports.cycles,
        imports.long_chains,
        imports.distributed_below,
        imports.torch_in_classical,
        imports.eager_optional,
        imports.scattered_optional,
        imports.core_beyond_torch,
        hygiene.prints,
        hygiene.not_implemented,
        hygiene.unexplained_suppressions,
        hygiene.banners,
        api.undocumented,
        api.positional,
        api.loose_dataclasses,
        api.top_names,
        api.without_example,
    ],
    ids=lambda check: check.__name__,
)
def test_package(check):
    passes(check(PACKAGE))


def test_errors_that_are_caught_have_a_name():
    passes(hygiene.broad_excepts(PACKAGE, BROAD_EXCEPTS))


def test_optional_packages_have_an_extra():
    passes(imports.undeclared(PACKAGE, imports.extras(ROOT)))


def test_importing_is_free():
    passes(free_import.import_effects(ROOT, refused=imports.extras(ROOT)))


def test_modules_have_tests():
    passes(files.unmirrored(ROOT, PACKAGE, COVERED_ELSEWHERE))


def test_test_folders_are_packages():
    passes(files.folders_without_init(TESTS))


@needs_git
@pytest.mark.parametrize("check", [files.large_files, files.machine_paths], ids=lambda check: check.__name__)
def test_tracked_files(check):
    passes(check(ROOT, files.tracked(ROOT)))


def test_the_design_page_states_the_levels():
    levels = " <- ".join(", ".join(level) for level in imports.LEVELS)
    page = " ".join((ROOT / "docs/design.md").read_text(encoding="utf-8").split())
    assert levels in page, f"docs/design.md and LEVELS of tests/checks/imports.py differ; the latter says {levels}"
