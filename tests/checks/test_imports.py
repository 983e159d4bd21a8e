import pytest

from tests.checks import imports
from tests.checks.tree import read_tree, write_tree


def read(tmp_path, files):
    files = {"mixtura/__init__.py": "", **{f"mixtura/{path}": text for path, text in files.items()}}
    return read_tree(write_tree(tmp_path, files))


NAMES = [name for level in imports.LEVELS for name in level if name not in {"routers", "observe"}]
EMPTY = {f"{name}.py": "" for name in NAMES} | {
    f"{name}/__init__.py": "" for name in ("classical", "observe", "routers")
}


@pytest.mark.parametrize(
    ("path", "text", "issue"),
    [
        ("routing.py", "from mixtura.layer import MoE", "1: imports mixtura.layer.MoE, but layer lies above routing"),
        ("routing.py", "def f():\n    import mixtura.layer", "2: imports mixtura.layer, but layer lies above"),
        ("losses.py", "from mixtura import dispatch", "1: imports mixtura.dispatch, but losses and dispatch are sib"),
        ("observe/__init__.py", "from ..train import a", "1: imports mixtura.train.a, but train lies above observe"),
        ("routers/a.py", "from mixtura import MoE", "1: imports mixtura.MoE, but nothing below imports the package"),
        ("classical/em.py", "from mixtura import routing", "1: imports mixtura.routing, but classical imports nothing"),
        ("hub.py", "import mixtura.classical", "1: imports mixtura.classical, but only the command line"),
        ("kernels.py", "import mixtura.mapping", "1: imports mixtura.mapping, but kernels and mapping are siblings"),
        ("errors.py", "from mixtura import routing", "1: imports mixtura.routing, but routing lies above errors"),
        ("train.py", "import importlib\nimportlib.import_module('mixtura.cli')", "2: imports mixtura.cli"),
        ("helpers.py", "", "1: 'helpers' is on no level"),
    ],
)
def test_imports_against_the_levels_are_reported(tmp_path, path, text, issue):
    (found,) = imports.wrong_direction(read(tmp_path, EMPTY | {path: text}))
    assert found.startswith(f"mixtura/{path}:{issue}")


def test_imports_down_the_levels_pass(tmp_path):
    files = {
        "__init__.py": "from mixtura.layer import MoE\nfrom mixtura import classical",
        "__main__.py": "from mixtura.cli import main",
        "errors.py": "",
        "mapping.py": "from mixtura.errors import UserError",
        "kernels/__init__.py": "from mixtura.kernels import cpu",
        "kernels/cpu.py": "from mixtura.errors import UserError",
        "routing.py": "from mixtura.kernels.cpu import combine",
        "routers/__init__.py": "from mixtura.routers.base import Router",
        "routers/base.py": "from ..routing import Routing",
        "layer.py": "from mixtura import dispatch, routers",
        "dispatch.py": "import torch",
        "classical/__init__.py": "from mixtura.errors import UserError",
        "train/__init__.py": "def f():\n    from mixtura import __version__\n    from mixtura.observe import metrics",
        "observe/__init__.py": "",
        "observe/metrics.py": "",
        "cli.py": "import mixtura.train, mixtura.classical",
    }
    assert imports.wrong_direction(read(tmp_path, files)) == []


def test_a_cycle_is_reported_with_every_line_of_it(tmp_path):
    files = {
        "a.py": "import os\nfrom mixtura.b import x",
        "b.py": "class B:\n    from .c import y",
        "c.py": "try:\n    from mixtura import a\nfinally:\n    pass",
    }
    found = imports.cycles(read(tmp_path, files))
    assert sorted(issue.split(": ")[0] for issue in found) == ["mixtura/a.py:2", "mixtura/b.py:2", "mixtura/c.py:2"]


def test_a_package_and_its_part_that_import_each_other_are_a_cycle(tmp_path):
    files = {
        "kernels/__init__.py": "from mixtura.kernels.cpu import f",
        "kernels/cpu.py": "from mixtura.kernels import g",
    }
    assert len(imports.cycles(read(tmp_path, files))) == 2


def test_late_and_type_only_imports_make_no_cycle(tmp_path):
    late = "def f():\n    import mixtura.a"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mixtura.a"
    for text in (late, typed):
        assert imports.cycles(read(tmp_path, {"a.py": "import mixtura.b", "b.py": text})) == []


@pytest.mark.parametrize(("links", "reported"), [(10, False), (11, True)])
def test_chains_of_more_than_ten_links_are_reported(tmp_path, links, reported):
    files = {f"m{i:02}.py": f"import mixtura.m{i + 1:02}" for i in range(links)} | {f"m{links:02}.py": ""}
    found = imports.long_chains(read(tmp_path, files))
    assert [issue.startswith("mixtura/m00.py:1: 11 imports in a row") for issue in found] == [True] * reported


def test_late_imports_end_a_chain(tmp_path):
    files = {f"m{i:02}.py": f"import mixtura.m{i + 1:02}" for i in range(11)} | {"m11.py": ""}
    files["m05.py"] = "def f():\n    import mixtura.m06"
    assert imports.long_chains(read(tmp_path, files)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "def f():\n    from torch.distributed.tensor import DTensor",
        "import torch\n\ndef f(x):\n    torch.distributed.all_reduce(x)",
    ],
)
def test_torch_distributed_is_reported_up_to_the_layer(tmp_path, text):
    for name in ("layer", "routing", "kernels/cpu"):
        (found,) = imports.distributed_below(read(tmp_path / name, {f"{name}.py": text}))
        assert found.startswith(f"mixtura/{name}.py:{len(text.splitlines())}: uses torch.distributed")
    allowed = {"parallel.py": text, "ranks.py": text, "layer.py": "import torch.nn"}
    assert imports.distributed_below(read(tmp_path, allowed)) == []


def test_torch_in_classical_is_reported(tmp_path):
    (found,) = imports.torch_in_classical(
        read(tmp_path, {"classical/em.py": "from torch import nn", "layer.py": "import torch"})
    )
    assert found.startswith("mixtura/classical/em.py:1: classical imports torch")


def test_an_optional_package_on_the_way_of_the_import_is_reported(tmp_path):
    files = {
        "__init__.py": "from mixtura.observe.record import record",
        "observe/__init__.py": "import plotly",  # runs as the parent of observe.record
        "observe/record.py": "import torch\ndef f():\n    import tyro\nif True:\n    from rich import box",
        "train.py": "import tokenizers",
    }
    found = imports.eager_optional(read(tmp_path, files))
    assert sorted(issue.split(": ")[0] for issue in found) == [
        "mixtura/observe/__init__.py:1",
        "mixtura/observe/record.py:5",
    ]


def test_an_optional_package_in_two_files_is_reported(tmp_path):
    late = "def f():\n    import tyro"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tyro"
    (found,) = imports.scattered_optional(read(tmp_path, {"cli.py": late, "train.py": late, "hub.py": typed}))
    assert found.startswith("mixtura/train.py:2: tyro is imported in mixtura/cli.py, mixtura/train.py")
    assert imports.scattered_optional(read(tmp_path / "one", {"cli.py": late, "hub.py": typed})) == []


def test_shared_packages_stay_where_the_table_puts_them(tmp_path):
    files = {
        "classical/a.py": "import scipy, numpy",
        "classical/b.py": "import scipy, numpy",
        "train.py": "import numpy",
    }
    assert imports.scattered_optional(read(tmp_path, files)) == []
    (found,) = imports.scattered_optional(read(tmp_path, {**files, "train.py": "import scipy"}))
    assert found.startswith("mixtura/train.py:1: scipy is imported in mixtura/train.py")


def test_the_core_needs_torch_alone(tmp_path):
    late = "def f():\n    import numpy, triton"
    files = {"kernels/triton.py": "import triton", "routing.py": late, "models/gpt.py": late, "train.py": late}
    found = imports.core_beyond_torch(read(tmp_path, files))
    places = [issue.split(": ")[0] for issue in found]
    assert places == ["mixtura/models/gpt.py:2"] * 2 + ["mixtura/routing.py:2"] * 2


def test_a_package_of_no_extra_is_reported(tmp_path):
    project = """
        [project.optional-dependencies]
        classical = ["scikit-learn>=1.5", "numpy[fast]>=1; python_version>'3'"]
        dev = ["pytest"]
    """
    declared = imports.extras(write_tree(tmp_path, {"pyproject.toml": project}))
    assert declared == {"sklearn": {"classical"}, "numpy": {"classical"}}
    (found,) = imports.undeclared(read(tmp_path, {"train.py": "import numpy\ndef f():\n    import pandas"}), declared)
    assert found.startswith("mixtura/train.py:3: no extra of pyproject.toml installs pandas")
