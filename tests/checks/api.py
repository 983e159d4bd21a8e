"""Public names: documented, with an example, keyword-only, few at the top."""

import ast
import re
from collections.abc import Mapping

from tests.checks.tree import Definition, Function, Module, dotted, flat, public_definitions

TOP_NAMES = 40
NEEDS_EXTRA = {"classical"}  # top names that `from mixtura import *` leaves out, since it works with torch alone
POSITIONAL = 3
EXAMPLE = re.compile(r"^\s*Examples?::?\s*$.*?^\s*>>> ", re.MULTILINE | re.DOTALL)
# Their callers are torch.autograd (`apply` takes no keywords) and the Triton launcher.
POSITIONAL_BY_NATURE = ("torch.autograd.Function", "autograd.Function", "Function")
POSITIONAL_DECORATORS = ("triton.jit", "jit")


def undocumented(modules: Mapping[str, Module]) -> list[str]:
    """Report modules and public names without a docstring; dunder methods and overrides need none."""
    issues = []
    for module in modules.values():
        if module.text.strip() and ast.get_docstring(module.tree) is None:
            issues.append(f"{module.path}:1: the module has no docstring; say in one line what it is for")
        for node, owner in public_definitions(module):
            exempt = {"override", "overload", "setter"} & {dotted(d).rpartition(".")[2] for d in node.decorator_list}
            dunder = owner is not None and node.name.startswith("__")
            if not (exempt or dunder or ast.get_docstring(node)):
                issues.append(
                    f"{module.path}:{node.lineno}: {node.name} has no docstring; say what it is, shapes, errors"
                )
    return issues


def positional(modules: Mapping[str, Module]) -> list[str]:
    """Report public functions with more than 3 positional parameters or an untyped `**`, `__init__` included.

    `self` and `cls` do not count. `torch.autograd.Function` and Triton kernels are exempt: their callers pass by place.
    """
    issues = []
    for module in modules.values():
        for node, owner in public_definitions(module):
            if not isinstance(node, Function) or _by_place(node, owner):
                continue
            if node.name.startswith("__") and node.name not in {"__init__", "__call__"}:
                continue
            bound = owner is not None and "staticmethod" not in {dotted(d) for d in node.decorator_list}
            count = len(node.args.posonlyargs) + len(node.args.args) - bound
            name = f"{module.path}:{node.lineno}: {owner.name + '.' if owner else ''}{node.name}"
            if count > POSITIONAL:
                issues.append(
                    f"{name} has {count} positional parameters, at most {POSITIONAL}; put `*` before the rest"
                )
            if node.args.kwarg and not _is_typed(node.args.kwarg):
                issues.append(f"{name} takes **{node.args.kwarg.arg}; name each argument, or take one config value")
    return issues


def _is_typed(kwarg: ast.arg) -> bool:
    """Whether `**` names its arguments after all: `**options: Unpack[SomeTypedDict]`."""
    return isinstance(kwarg.annotation, ast.Subscript) and dotted(kwarg.annotation.value) == "Unpack"


def _by_place(node: Function, owner: ast.ClassDef | None) -> bool:
    decorators = {dotted(d) for d in node.decorator_list}
    bases = {dotted(base) for base in owner.bases} if owner else set()
    return bool(decorators & {*POSITIONAL_DECORATORS} or bases & {*POSITIONAL_BY_NATURE})


def loose_dataclasses(modules: Mapping[str, Module]) -> list[str]:
    """Report public dataclasses that are not frozen, or that have more than 3 fields and are not `kw_only`."""
    issues = []
    for module in modules.values():
        for node, _ in public_definitions(module):
            if not isinstance(node, ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if dotted(decorator).rpartition(".")[2] != "dataclass":
                    continue
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                on = {k.arg for k in keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
                annotated = [s for s in node.body if isinstance(s, ast.AnnAssign)]
                count = sum("ClassVar" not in ast.dump(s.annotation) for s in annotated)
                where = f"{module.path}:{node.lineno}: the dataclass {node.name}"
                if "frozen" not in on:
                    issues.append(f"{where} is not frozen; add frozen=True and use dataclasses.replace")
                if count > POSITIONAL and "kw_only" not in on:
                    issues.append(f"{where} has {count} positional fields, at most {POSITIONAL}; add kw_only=True")
    return issues


def top_names(modules: Mapping[str, Module], package: str = "mixtura") -> list[str]:
    """Report more than 40 names in `__all__`, names of the top module that it lacks, and a missing `__all__`."""
    module = modules[package]
    listed = _listed(module)
    bound = _bound(module)
    if listed is None:
        return [f"{module.path}:1: no __all__ for {', '.join(sorted(bound))}; list the public names"] if bound else []
    issues = []
    if len(listed) > TOP_NAMES:
        issues.append(f"{module.path}:1: {len(listed)} public names, at most {TOP_NAMES}; leave some in their module")
    issues += [
        f"{module.path}:{line}: {name} is bound but not in __all__; add it, or rename it with an underscore"
        for name, line in sorted(bound.items())
        if name not in listed and name not in NEEDS_EXTRA
    ]
    return issues


def without_example(modules: Mapping[str, Module], package: str = "mixtura") -> list[str]:
    """Report names of `__all__` whose docstring lacks an `Example:` section with a doctest that runs.

    Modules count (their docstring shows how to start); constants and dunder names do not, they have no docstring.
    """
    issues = []
    for name in _listed(modules[package]) or []:
        if name.startswith("__"):
            continue
        found = _definition(modules, package, name)
        if found is None:
            issues.append(f"{modules[package].path}:1: cannot find the definition of {name}; import it from its module")
        elif not isinstance(found[1], ast.Assign | ast.AnnAssign):
            module, node = found
            text = ast.get_docstring(node) or ""
            if not EXAMPLE.search(text) or "+SKIP" in text:
                line = getattr(node, "lineno", 1)
                issues.append(f"{module.path}:{line}: {name} has no example that runs; add `Example:` with a doctest")
    return issues


def _listed(module: Module) -> list[str] | None:
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and [dotted(target) for target in node.targets] == ["__all__"]:
            return [str(value) for value in ast.literal_eval(node.value)]
    return None


def _bound(module: Module) -> dict[str, int]:
    names = {}
    for node in flat(module.tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            standard = isinstance(node, ast.ImportFrom) and node.module in {"__future__", "typing"}
            bound = [] if standard else bound
        elif isinstance(node, ast.Assign):
            bound = [dotted(target) for target in node.targets]
        else:
            bound = [node.name] if isinstance(node, Definition) else []
        names.update({name: node.lineno for name in bound if name and not name.startswith("_")})
    return names


def _definition(modules: Mapping[str, Module], place: str, name: str) -> tuple[Module, ast.AST] | None:
    """Follow re-exports from `place` to the statement that defines `name` (a module's tree if it is a module)."""
    module = modules[place]
    for node in flat(module.tree.body):
        if isinstance(node, Definition) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in [dotted(target) for target in targets]:
                return module, node
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if (alias.asname or alias.name) == name and submodule in modules:
                    return modules[submodule], modules[submodule].tree
                if (alias.asname or alias.name) == name and node.module in modules and node.module != place:
                    return _definition(modules, node.module, alias.name)
    submodule = modules.get(f"{place}.{name}")
    return (submodule, submodule.tree) if submodule else None
