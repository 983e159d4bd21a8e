"""The top names: loaded on first use, the same for a type checker as at run time, and none for who has no torch."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mixtura

SOURCE = Path(mixtura.__file__).read_text(encoding="utf-8")
BLOCKED = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
import mixtura.classical
import mixtura.classical.{module}
assert mixtura.classical is sys.modules["mixtura.classical"]
assert mixtura.UserError is sys.modules["mixtura.errors"].UserError
"""


def typed_imports():
    block = next(n for n in ast.parse(SOURCE).body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {alias.name: statement.module for statement in block.body for alias in statement.names}


def test_type_checkers_see_what_is_loaded():
    typed = typed_imports()
    assert {name: home for name, home in typed.items() if home != "mixtura"} == mixtura._HOME
    assert {name for name, home in typed.items() if home == "mixtura"} == set(mixtura._MODULES)
    assert set(mixtura.__all__) == typed.keys() - {"classical", "parallel", "parallelize"}
    assert typed.keys() <= set(dir(mixtura))


@pytest.mark.parametrize("name", mixtura.__all__)
def test_every_name_is_the_one_of_its_module(name):
    home = typed_imports()[name]
    expected = import_module(f"mixtura.{name}") if home == "mixtura" else getattr(import_module(home), name)
    assert getattr(mixtura, name) is expected


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mixtura' has no attribute 'MoEE'"):
        _ = mixtura.MoEE


def test_importing_the_package_loads_no_torch():
    code = "import sys, mixtura; assert 'torch' not in sys.modules; mixtura.MoE; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(mixtura.__file__).parents[1])


@pytest.mark.parametrize("module", ["softmax", "regressor"])
def test_classical_works_where_torch_is_missing(module):
    root = Path(mixtura.__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", BLOCKED.format(module=module)], check=True, cwd=root)
