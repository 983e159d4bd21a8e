"""A source tree as a value: parsed once, read by every check."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE_FOLDERS = ("mixtura", "tests", "benchmarks", "examples")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed file: its dotted name, its path below the root, its text and its syntax tree."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether the file is an `__init__.py`."""
        return self.path.endswith("__init__.py")

    @property
    def lines(self) -> list[str]:
        """The file's physical lines."""
        return self.text.splitlines()


def read_tree(root: Path, folders: tuple[str, ...] = SOURCE_FOLDERS) -> dict[str, Module]:
    """Parse every Python file below `folders` of `root`, keyed by dotted name; a missing folder holds nothing."""
    modules = {}
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(relative))
        modules[name] = Module(name=name, path=relative.as_posix(), text=text, tree=tree)
    return modules


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write `files` (path: text) below `root` and return `root`: the small fabricated trees of the negative tests."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return root


def is_public(module: Module) -> bool:
    """Whether no part of the module's dotted name starts with an underscore (`__init__` and `__main__` aside)."""
    return not any(part.startswith("_") and part != "__main__" for part in module.name.split("."))


def public_definitions(module: Module) -> Iterator[tuple[Definition, ast.ClassDef | None]]:
    """Yield each public function, class and method of a public module, with the class that owns it.

    Dunder methods of public classes are yielded too; what is defined inside a function is private.
    """
    if is_public(module):
        yield from _public(module.tree.body, owner=None)


def _public(body: list[ast.stmt], *, owner: ast.ClassDef | None) -> Iterator[tuple[Definition, ast.ClassDef | None]]:
    for node in flat(body):
        if not isinstance(node, Definition):
            continue
        dunder = owner is not None and node.name.startswith("__") and node.name.endswith("__")
        if node.name.startswith("_") and not dunder:
            continue
        yield node, owner
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, owner=node)


def flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of `body`, with the branches of `if` and `try` unfolded."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from flat(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from flat(node.body + [s for handler in node.handlers for s in handler.body])
            yield from flat(node.orelse + node.finalbody)


def dotted(node: ast.AST | None) -> str:
    """Give `a.b.c` of a name, an attribute or a call of one, and the empty string of anything else."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""
