import pytest

from tests.checks import hygiene
from tests.checks.tree import read_tree, write_tree


def lines(check, tmp_path, text, path="mixtura/a.py", tables=()):
    return [int(issue.split(":")[1]) for issue in check(read_tree(write_tree(tmp_path, {path: text})), *tables)]


def test_prints_are_reported_outside_the_command_line(tmp_path):
    text = "import sys, pprint\nprint(1)\nsys.stdout.write('x')\npprint.pprint(1)\nprint\n"
    assert lines(hygiene.prints, tmp_path / "a", text) == [2, 3, 4]
    assert lines(hygiene.prints, tmp_path / "c", text, "mixtura/client.py") == [2, 3, 4]
    for number, path in enumerate(["mixtura/cli.py", "mixtura/__main__.py", "mixtura/train/progress.py"]):
        assert lines(hygiene.prints, tmp_path / str(number), text, path) == []


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    pass\nexcept:\n    pass",
        "try:\n    pass\nexcept Exception as e:\n    pass",
        "try:\n    pass\nexcept (ValueError, BaseException):\n    raise ValueError",
        "import contextlib\n\nwith contextlib.suppress(Exception):\n    pass",
    ],
)
def test_broad_excepts_are_reported(tmp_path, text):
    assert lines(hygiene.broad_excepts, tmp_path, text, tables=[{}]) == [3]
    assert lines(hygiene.broad_excepts, tmp_path, text, tables=[{"mixtura/a.py": "why"}]) == []


def test_named_and_reraising_excepts_pass(tmp_path):
    text = "try:\n    pass\nexcept (OSError, ValueError):\n    pass\nexcept BaseException:\n    clean()\n    raise\n"
    assert lines(hygiene.broad_excepts, tmp_path, text, tables=[{}]) == []
    assert lines(hygiene.broad_excepts, tmp_path, text, tables=[{"mixtura/a.py": "stale"}]) == [1]


def test_open_ends_are_reported(tmp_path):
    notes = ["# TO" + "DO: later", "x = 1  # FIX" + "ME", '"""X' + 'XX"""', "# todos, METHODO", "TO" + "DOS = 1"]
    assert lines(hygiene.open_ends, tmp_path, "\n".join(notes)) == [1, 2, 3]


CONTRACT = '''
class Router{bases}:
    def forward(self, x):
        """Route."""
        raise NotImplementedError
'''


def test_not_implemented_is_reported_outside_contracts(tmp_path):
    assert lines(hygiene.not_implemented, tmp_path / "a", CONTRACT.format(bases="(nn.Module)")) == [5]
    assert lines(hygiene.not_implemented, tmp_path / "b", "def f():\n    raise NotImplementedError('x')") == [2]
    half = CONTRACT.format(bases="(ABC)").replace('"""Route."""', "if x:\n            return x")
    assert lines(hygiene.not_implemented, tmp_path / "c", half) == [6]


@pytest.mark.parametrize("bases", ["(ABC)", "(nn.Module, abc.ABC)", "(Protocol[T])", "(metaclass=ABCMeta)"])
def test_abstract_contracts_pass(tmp_path, bases):
    assert lines(hygiene.not_implemented, tmp_path, CONTRACT.format(bases=bases)) == []
    assert lines(hygiene.not_implemented, tmp_path / "base", CONTRACT.format(bases=""), "mixtura/routers/base.py") == []


@pytest.mark.parametrize(
    "comment",
    [
        "noqa",
        "noqa: S301",
        "noqa: S301, B904",
        "type: ignore",
        "type: ignore[arg-type]",
        "type: ignore  # why not at all",
    ],
)
def test_suppressions_without_code_or_reason_are_reported(tmp_path, comment):
    assert lines(hygiene.unexplained_suppressions, tmp_path, f"x = 1\ny = 2  # {comment}\n") == [2]


@pytest.mark.parametrize(
    "comment",
    [
        "noqa: S301  the file is our own",
        "noqa: N812  # torch's own name",
        "noqa: S301, B904 (own file)",
        "type: ignore[misc]  # torch is untyped here",
    ],
)
def test_explained_suppressions_pass(tmp_path, comment):
    assert lines(hygiene.unexplained_suppressions, tmp_path, f"x = 1  # {comment}\ny = '# noqa'\n") == []


def test_banners_are_reported(tmp_path):
    text = "# ------ part\n# == x\n#####\n# a - b\nx = '# ------'\n# ======\n"
    assert lines(hygiene.banners, tmp_path, text) == [1, 3, 6]
