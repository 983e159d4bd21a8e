from tests.checks.size import long_files, long_functions
from tests.checks.tree import read_tree, write_tree


def read(tmp_path, text):
    return read_tree(write_tree(tmp_path, {"mixtura/a.py": text}))


def test_a_file_of_401_lines_is_reported(tmp_path):
    assert long_files(read(tmp_path, "x = 1\n" * 400)) == []
    (issue,) = long_files(read(tmp_path, "x = 1\n" * 401))
    assert issue.startswith("mixtura/a.py:401: 401 lines")


def test_a_body_of_51_lines_is_reported(tmp_path):
    assert long_functions(read(tmp_path, "def f():\n" + "    x = 1\n" * 50)) == []
    (issue,) = long_functions(read(tmp_path, "\ndef f():\n" + "    x = 1\n" * 51))
    assert issue.startswith("mixtura/a.py:2: the body of f has 51 lines")


def test_signature_and_docstring_do_not_count(tmp_path):
    head = "def f(\n" + "".join(f"    a{i},\n" for i in range(30)) + '):\n    """One.\n' + "\n" * 30 + '    """\n'
    assert long_functions(read(tmp_path, head + "    x = 1\n" * 50)) == []
    assert len(long_functions(read(tmp_path, head + "    x = 1\n" * 51))) == 1


def test_comments_decorators_methods_and_nested_functions_count(tmp_path):
    method = (
        "class A:\n    async def f(self):\n        # why\n        x = 1\n" + "        # why\n" * 50 + "        x = 1\n"
    )
    assert [issue.split(" ")[4] for issue in long_functions(read(tmp_path, method))] == ["f"]
    nested = "def f():\n    @g\n    def h():\n" + "        x = 1\n" * 48 + "    return h\n"
    assert ["f has 51" in issue for issue in long_functions(read(tmp_path, nested))] == [True]
