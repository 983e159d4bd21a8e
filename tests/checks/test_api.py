import pytest

from tests.checks import api
from tests.checks.tree import read_tree, write_tree


def read(tmp_path, files):
    files = {"mixtura/a.py": files} if isinstance(files, str) else files
    return read_tree(write_tree(tmp_path, files))


DOCUMENTED = '''"""Module."""
@overload
def f(): ...
def f():
    """Do."""
    def inside(): ...
def _private(): ...
class A:
    """A."""
    def __init__(self): ...
    def _hidden(self): ...
    @override
    def forward(self): ...
class _B:
    def g(self): ...
'''


def test_missing_docstrings_are_reported(tmp_path):
    assert api.undocumented(read(tmp_path, DOCUMENTED)) == []
    text = "def f(): ...\nclass A:\n    def g(self): ...\nif x:\n    async def h(): ...\n"
    found = [issue.split(" ")[0] + issue.split(" ")[1] for issue in api.undocumented(read(tmp_path, text))]
    assert found == [
        "mixtura/a.py:1:the",
        "mixtura/a.py:1:f",
        "mixtura/a.py:2:A",
        "mixtura/a.py:3:g",
        "mixtura/a.py:5:h",
    ]


def test_modules_with_an_underscore_are_private(tmp_path):
    files = {"mixtura/_b.py": '"""B."""\ndef f(a, b, c, d): ...', "mixtura/_c/d.py": '"""D."""\ndef f(**kwargs): ...'}
    assert api.undocumented(read(tmp_path, files)) == []
    assert api.positional(read(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("def f(a, b, c, d=1): ...", ":1: f has 4 positional parameters"),
        ("def f(a, b, /, c, d): ...", ":1: f has 4 positional parameters"),
        ("class A:\n    def __init__(self, a, b, c, d): ...", ":2: A.__init__ has 4 positional parameters"),
        ("class A:\n    def forward(self, a, b, c, d): ...", ":2: A.forward has 4 positional parameters"),
        ("class A:\n    @staticmethod\n    def f(a, b, c, d): ...", ":3: A.f has 4 positional parameters"),
        ("def f(a, **kwargs): ...", ":1: f takes **kwargs"),
        ("class A:\n    def __call__(self, **options): ...", ":2: A.__call__ takes **options"),
        ("def f(a, **options: dict[str, int]): ...", ":1: f takes **options"),
    ],
)
def test_many_positional_parameters_and_double_stars_are_reported(tmp_path, text, issue):
    (found,) = api.positional(read(tmp_path, text))
    assert found.startswith(f"mixtura/a.py{issue}")


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, b, c, *, d, e): ...",
        "def _f(a, b, c, d, **kwargs): ...",
        "def f():\n    def inside(a, b, c, d): ...",
        "class A:\n    def f(self, a, b, c): ...\n    @classmethod\n    def g(cls, a, b, c): ...",
        "class A:\n    def __torch_function__(self, func, types, args, kwargs): ...",
        "class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, a, b, c, d): ...",
        "@triton.jit\ndef kernel(a, b, c, d): ...",
    ],
)
def test_keyword_only_and_private_functions_pass(tmp_path, text):
    assert api.positional(read(tmp_path, text)) == []


def test_loose_dataclasses_are_reported(tmp_path):
    text = "@dataclass\nclass A:\n    a: int\n"
    many = "@dataclasses.dataclass(frozen=True)\nclass B:\n    a: int\n    b: int\n    c: int\n    d: int\n"
    found = [issue.partition("; ")[0] for issue in api.loose_dataclasses(read(tmp_path, text + many))]
    assert found == [
        "mixtura/a.py:2: the dataclass A is not frozen",
        "mixtura/a.py:5: the dataclass B has 4 positional fields, at most 3",
    ]
    private = text.replace("A", "_A")
    tight = many.replace("frozen=True", "frozen=True, kw_only=True") + many.replace("d: int", "d: ClassVar[int] = 1")
    assert api.loose_dataclasses(read(tmp_path, private + tight)) == []


def test_names_at_the_top_are_listed_and_few(tmp_path):
    def top(text):
        return [
            issue.partition(": ")[2].partition(";")[0]
            for issue in api.top_names(read(tmp_path, {"mixtura/__init__.py": text}))
        ]

    assert top('__version__ = "1"\nfrom typing import TYPE_CHECKING\n_x = 1') == []
    assert top("from mixtura.layer import MoE") == ["no __all__ for MoE"]
    assert top("__all__ = ['A']\nfrom a import A, B as C\ndef f(): ...") == [
        "C is bound but not in __all__",
        "f is bound but not in __all__",
    ]
    assert top(f"__all__ = {[f'n{i}' for i in range(40)]}") == []
    assert top(f"__all__ = {[f'n{i}' for i in range(41)]}") == ["41 public names, at most 40"]


EXAMPLE = '''class MoE:
    """A layer.

    Example:
        >>> 1
        1
    """
'''


@pytest.mark.parametrize(
    ("layer", "issue"),
    [
        (EXAMPLE, None),
        ("MoE = 3", None),
        (EXAMPLE.replace("Example:", "Notes:"), "mixtura/layer.py:1: MoE has no example that runs"),
        (EXAMPLE.replace(">>> 1", "1"), "mixtura/layer.py:1: MoE has no example that runs"),
        (EXAMPLE.replace(">>> 1", ">>> 1  # doctest: +SKIP"), "mixtura/layer.py:1: MoE has no example that runs"),
        ("class MoE: ...", "mixtura/layer.py:1: MoE has no example that runs"),
        ("", "mixtura/__init__.py:1: cannot find the definition of MoE"),
    ],
)
def test_public_names_without_an_example_are_reported(tmp_path, layer, issue):
    files = {
        "mixtura/__init__.py": "__all__ = ['MoE', '__version__']\nfrom mixtura.shelf import Layer as MoE",
        "mixtura/shelf/__init__.py": "if TYPE_CHECKING:\n    from mixtura.layer import MoE as Layer",
        "mixtura/layer.py": layer,
    }
    found = api.without_example(read(tmp_path, files))
    assert [text.partition(";")[0] for text in found] == ([issue] if issue else [])


def test_public_modules_need_an_example_too(tmp_path):
    files = {"mixtura/__init__.py": "__all__ = ['hub']", "mixtura/hub/__init__.py": '"""Hub."""'}
    (found,) = api.without_example(read(tmp_path, files))
    assert found.startswith("mixtura/hub/__init__.py:1: hub has no example that runs")
