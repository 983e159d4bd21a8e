"""Files of at most 400 lines, functions of at most 50."""

import ast
from collections.abc import Mapping

from tests.checks.tree import Function, Module

FILE_LINES = 400
FUNCTION_LINES = 50


def long_files(modules: Mapping[str, Module]) -> list[str]:
    """Report files of more than 400 physical lines."""
    return [
        f"{module.path}:{FILE_LINES + 1}: {len(module.lines)} lines, at most {FILE_LINES}; split the file by subject"
        for module in modules.values()
        if len(module.lines) > FILE_LINES
    ]


def long_functions(modules: Mapping[str, Module]) -> list[str]:
    """Report functions whose body has more than 50 lines.

    The body counts from after the docstring (or from the first statement) to the last line, comments and blank lines
    included. Signature and docstring are left out, so that nobody saves on argument names or documentation.
    """
    return [
        f"{module.path}:{node.lineno}: the body of {node.name} has {count} lines, at most {FUNCTION_LINES}; "
        "move its maths into a pure function"
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, Function) and (count := _body_lines(node)) > FUNCTION_LINES
    ]


def _body_lines(node: Function) -> int:
    first, last = node.body[0], node.body[-1].end_lineno or 0
    if ast.get_docstring(node, clean=False) is not None:
        return last - (first.end_lineno or 0)
    start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    return last - start + 1
