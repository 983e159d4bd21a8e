from tests.checks.free_import import import_effects
from tests.checks.tree import write_tree

# One import of everything that is forbidden, because each interpreter loads torch.
SINS = """\
import json, os, socket, subprocess, torch, logging
try:
    import numpy.linalg
except ImportError:
    pass
try:
    import importlib; importlib.import_module("rich.table")
except ImportError:
    pass
torch.cuda.is_available()
from tiny import deep
torch.set_num_threads(torch.get_num_threads() + 1)
torch.rand(1)
os.environ["TINY"] = "1"
subprocess.run(["true"])
print("hello")
"""
DEEP = "import torch\ntorch.accelerator.current_accelerator()\nopen(__file__ + '.log', 'w').close()\n"


def test_everything_that_an_import_must_not_do_is_reported(tmp_path):
    root = write_tree(tmp_path, {"tiny/__init__.py": SINS, "tiny/deep.py": DEEP})
    found = import_effects(root, "tiny", refused={"rich"})
    assert [issue.partition(";")[0] for issue in found] == [
        "tiny/__init__.py:3: imports the optional numpy",
        "tiny/__init__.py:7: imports the optional rich",
        "tiny/__init__.py:10: calls torch.cuda.is_available",
        "tiny/deep.py:2: calls torch.accelerator.current_accelerator",
        "tiny/deep.py:3: raises the audit event open",
        "tiny/__init__.py:15: raises the audit event subprocess.Popen",
        "tiny/__init__.py:1: changes the threads of torch",
        "tiny/__init__.py:1: changes the seed of torch",
        "tiny/__init__.py:1: changes the environment",
        "tiny/__init__.py:1: `import tiny` prints 'hello'",
    ]


def test_an_optional_package_at_the_top_is_reported(tmp_path):
    root = write_tree(tmp_path, {"tiny/__init__.py": "import tyro"})
    assert [issue.partition(";")[0] for issue in import_effects(root, "tiny", refused={"tyro"})] == [
        "tiny/__init__.py:1: imports the optional tyro",
        "tiny/__init__.py:1: cannot be imported without tyro",
    ]


def test_parsing_arguments_is_reported(tmp_path):
    root = write_tree(tmp_path, {"tiny/__init__.py": "import argparse\nargparse.ArgumentParser().parse_args()"})
    (found,) = import_effects(root, "tiny")
    assert found.startswith("tiny/__init__.py:1: `import tiny` ends with code 2")
