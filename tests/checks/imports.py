"""Imports go one way, without cycles, in short chains, and optional packages stay optional."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Literal

from tests.checks.tree import Function, Module, dotted

# Lowest first; a component may import components of lower levels only. Names need not exist yet.
LEVELS = (
    ("uncompiled",),
    ("kernels", "mapping", "errors", "hooks", "ranks"),
    ("routing",),
    ("replays", "pooling"),
    ("losses", "dispatch", "experts", "routers"),
    ("layer",),
    ("config", "roles", "control"),
    ("parallel", "models", "multitask", "surgery", "observe"),
    ("hub",),
    ("train",),
    ("cli",),
)
LEVEL = {component: level for level, components in enumerate(LEVELS) for component in components}
ISLAND = "classical"  # imports nothing of mixtura but errors, and never torch
TOP = ("", "__main__")  # the package's own __init__ and its entry point: they may import everything
CORE = frozenset(component for component, level in LEVEL.items() if level <= LEVEL["config"]) | {"models"}
CHAIN = 10
RANKS = "ranks"  # the one place below `parallel` that asks torch.distributed, for one sum

# Optional packages that more than one file needs: where, and why. Every other one is imported in one file.
SHARED = {
    "numpy": ("mixtura", "token files, metrics of plain arrays and the classical estimators all speak arrays"),
    "safetensors": (
        "mixtura",
        "a training run's checkpoints and the hub's are files of it, on levels that do not meet",
    ),
    "scipy": ("mixtura.classical", "classical is built on numpy, scipy and scikit-learn"),
    "sklearn": ("mixtura", "classical is built on numpy, scipy and scikit-learn; the digits to train on are its own"),
}
CORE_MAY_IMPORT = {"triton": "mixtura.kernels"}
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL"}  # distributions whose import name differs


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: who, what (absolute, attribute included), where, and when.

    `top` runs when the module is imported, `late` when a function runs, `type` never (under `TYPE_CHECKING`).
    """

    module: Module
    target: str
    line: int
    when: Literal["top", "late", "type"]

    @property
    def root(self) -> str:
        """The first part of the target: the package."""
        return self.target.partition(".")[0]

    @property
    def where(self) -> str:
        """`file:line`, as every message begins."""
        return f"{self.module.path}:{self.line}"


def imports_of(module: Module) -> list[Import]:
    """List every import of a module, literal `import_module("...")` calls included."""
    return list(_walk(module, module.tree, "top"))


def _walk(module: Module, node: ast.AST, when: Literal["top", "late", "type"]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in _targets(module, child):
            yield Import(module=module, target=target, line=child.lineno, when=when)
        if isinstance(child, ast.If) and dotted(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _walk(module, ast.Module(body=[statement], type_ignores=[]), "type")
            yield from _walk(module, ast.Module(body=child.orelse, type_ignores=[]), when)
        else:
            inside = isinstance(child, Function | ast.Lambda)
            yield from _walk(module, child, "late" if inside and when == "top" else when)


def _targets(module: Module, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = module.name.split(".")
            parents = parents[: len(parents) - node.level + module.is_package]
            base = ".".join([*parents, *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in {"import_module", "__import__"}:
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def resolve(target: str, modules: Mapping[str, Module]) -> str | None:
    """Give the module of the tree that `target` names or is an attribute of, or None for an outside package."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def component(name: str) -> str:
    """Give the part of a dotted name below the package: `mixtura.routers.base` is of `routers`."""
    return [*name.split("."), ""][1]


def wrong_direction(modules: Mapping[str, Module]) -> list[str]:
    """Report imports that do not go down the levels; late and type-only ones count, a dependency is a dependency."""
    issues = []
    for module in modules.values():
        here = component(module.name)
        if here not in (*LEVEL, *TOP, ISLAND):
            issues.append(f"{module.path}:1: {here!r} is on no level; add it to LEVELS here and in docs/design.md")
            continue
        for entry in imports_of(module):
            target = resolve(entry.target, modules)
            if target is None or entry.target == "mixtura.__version__":
                continue
            if reason := _forbidden(here, component(target)):
                issues.append(f"{entry.where}: imports {entry.target}, but {reason}; move the shared part down a level")
    return issues


def _forbidden(here: str, there: str) -> str | None:
    if here in TOP or here == there or (there == "errors" and here in (*LEVEL, ISLAND)):
        return None
    if here == ISLAND:
        return f"{ISLAND} imports nothing of mixtura but errors"
    if there in TOP:
        return "nothing below imports the package's own names"
    if there == ISLAND:
        return None if here == "cli" else f"only the command line imports {ISLAND}"
    if LEVEL.get(there, -1) < LEVEL[here]:
        return None
    return f"{here} and {there} are siblings" if LEVEL[there] == LEVEL[here] else f"{there} lies above {here}"


def graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Map each module to the modules it imports at its own import.

    Late and type-only imports are left out: only a top-level import can meet a half-initialised module or make an
    import slow. That `import a.b` also runs `a/__init__.py` is left out too, or every package would be a cycle.
    """
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        for entry in imports_of(module):
            if entry.when == "top" and (target := resolve(entry.target, modules)):
                edges[name].add(target)
    return edges


def cycles(modules: Mapping[str, Module]) -> list[str]:
    """Report the first cycle of top-level imports, one line for each module on it."""
    try:
        TopologicalSorter(graph(modules)).prepare()
    except CycleError as error:
        around = error.args[1][::-1]
        text = " -> ".join(around)
        return [
            f"{entry.where}: part of the import cycle {text}; move what both need into a module below them"
            for name, target in pairwise(around)
            for entry in [_first(modules, name, target)]
        ]
    return []


def _first(modules: Mapping[str, Module], name: str, target: str) -> Import:
    found = (e for e in imports_of(modules[name]) if e.when == "top" and resolve(e.target, modules) == target)
    return next(found)


def long_chains(modules: Mapping[str, Module]) -> list[str]:
    """Report the longest chain of top-level imports if it has more than 10 links (so more than 11 modules)."""
    edges = graph(modules)
    chain: dict[str, list[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        below = max((chain[target] for target in sorted(edges[name])), key=len, default=[])
        chain[name] = [name, *below]
    longest = max(chain.values(), key=len, default=[])
    links = len(longest) - 1
    if links <= CHAIN:
        return []
    where = _first(modules, longest[0], longest[1]).where
    return [f"{where}: {links} imports in a row, at most {CHAIN}: {' -> '.join(longest)}; flatten or import late"]


def distributed_below(modules: Mapping[str, Module]) -> list[str]:
    """Report uses of torch.distributed in layer.py and everything below it, ranks.py aside."""
    issues = []
    for module in modules.values():
        here = component(module.name)
        if here == RANKS or LEVEL.get(here, len(LEVELS)) > LEVEL["layer"]:
            continue
        lines = {e.line for e in imports_of(module) if f"{e.target}.".startswith("torch.distributed.")}
        lines |= {node.lineno for node in ast.walk(module.tree) if _is_distributed(node)}
        issues += [
            f"{module.path}:{line}: uses torch.distributed; only mixtura.parallel and above may, sum by mixtura.ranks"
            for line in sorted(lines)
        ]
    return issues


def _is_distributed(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and dotted(node) == "torch.distributed"


def torch_in_classical(modules: Mapping[str, Module]) -> list[str]:
    """Report imports of torch in classical, which is numpy, scipy and scikit-learn only."""
    return [
        f"{entry.where}: {ISLAND} imports torch; use numpy or scipy"
        for module in modules.values()
        if component(module.name) == ISLAND
        for entry in imports_of(module)
        if entry.root == "torch"
    ]


def optional_imports(modules: Mapping[str, Module]) -> list[Import]:
    """List the imports of packages that are neither of the standard library, nor torch, nor in the tree."""
    own = {name.partition(".")[0] for name in modules} | {"torch"} | sys.stdlib_module_names
    return [e for module in modules.values() for e in imports_of(module) if e.root not in own]


def eager_optional(modules: Mapping[str, Module]) -> list[str]:
    """Report optional packages that `import mixtura` would import, parents of imported modules included."""
    edges = graph(modules)
    reached: set[str] = set()
    waiting = ["mixtura"] if "mixtura" in modules else []
    while waiting:
        name = waiting.pop()
        if name not in reached and name in modules:
            reached.add(name)
            waiting += [*edges[name], name.rpartition(".")[0]]
    return [
        f"{e.where}: `import mixtura` imports the optional {e.root}; import it inside the function that needs it"
        for e in optional_imports(modules)
        if e.when == "top" and e.module.name in reached
    ]


def scattered_optional(modules: Mapping[str, Module]) -> list[str]:
    """Report optional packages that more than one file imports; type-only imports import nothing and do not count."""
    files: dict[str, dict[str, Import]] = {}
    for entry in optional_imports(modules):
        place = SHARED.get(entry.root, ("", ""))[0]
        if entry.when != "type" and not (place and f"{entry.module.name}.".startswith(f"{place}.")):
            files.setdefault(entry.root, {}).setdefault(entry.module.path, entry)
    return [
        f"{e.where}: {package} is imported in {', '.join(found)}; keep it in one file, or say why in SHARED"
        for package, found in files.items()
        if len(found) > 1 or package in SHARED
        for e in list(found.values())[-1:]
    ]


def core_beyond_torch(modules: Mapping[str, Module]) -> list[str]:
    """Report any package but torch in the core (triton in kernels aside), late imports included."""
    return [
        f"{e.where}: the core needs torch alone, but this imports {e.root}; write it with torch or move it up"
        for e in optional_imports(modules)
        if component(e.module.name) in CORE and e.when != "type"
        if not f"{e.module.name}.".startswith(CORE_MAY_IMPORT.get(e.root, " ") + ".")
    ]


def extras(root: Path) -> dict[str, set[str]]:
    """Map the import name of each optional package of pyproject.toml to the extras that install it, dev aside."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, set[str]] = {}
    for extra, requirements in project.get("optional-dependencies", {}).items():
        for requirement in requirements if extra != "dev" else []:
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
            found.setdefault(IMPORT_NAMES.get(name, name.replace("-", "_")), set()).add(extra)
    return found


def undeclared(modules: Mapping[str, Module], declared: Mapping[str, set[str]]) -> list[str]:
    """Report imported packages that no extra of pyproject.toml installs."""
    return [
        f"{e.where}: no extra of pyproject.toml installs {e.root}; add it to one, and name that extra in the error"
        for e in optional_imports(modules)
        if e.root not in declared
    ]
