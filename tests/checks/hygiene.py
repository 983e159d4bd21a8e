"""What a line of the package may not hold: prints, broad excepts, open ends, unexplained suppressions, banners."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

from tests.checks.tree import Module, dotted, flat

BROAD = {"Exception", "BaseException"}
# Assembled, so that this file passes its own check.
OPEN_END = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore)(?P<rest>.*)")
EXPLAINED = re.compile(r"\s*(:\s*[A-Z]+\d+(\s*,\s*[A-Z]+\d+)*|\[[\w\s,-]+\])\s+\W*\w\S*\s+\S*\w")
BANNER = re.compile(r"#\s*([^\w\s])\1{3,}")


def prints(modules: Mapping[str, Module]) -> list[str]:
    """Report `print` and writes to the standard streams outside the command line and modules named `progress`."""
    calls = {"print", "pprint", "pprint.pprint", "sys.stdout.write", "sys.stderr.write"}
    return [
        f"{module.path}:{node.lineno}: calls {dotted(node)}; return the value, or warn, and let the command line print"
        for module in modules.values()
        if not re.match(r"mixtura\.(cli|__main__)\b", module.name) and not module.name.endswith(".progress")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and dotted(node) in calls
    ]


def broad_excepts(modules: Mapping[str, Module], allowed: Mapping[str, str]) -> list[str]:
    """Report handlers of everything, `suppress(Exception)` included, unless they end by raising the error again.

    `allowed` maps the path of a file to the reason why it cannot name the error; entries without use are reported too.
    """
    found: dict[str, list[str]] = {}
    for issue in _broad(modules):
        found.setdefault(issue.partition(":")[0], []).append(issue)
    stale = [f"{path}:1: needs no broad except any more; delete its entry" for path in allowed if path not in found]
    return [issue for path, issues in found.items() if path not in allowed for issue in issues] + stale


def _broad(modules: Mapping[str, Module]) -> list[str]:
    issues = []
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
                last = node.body[-1]
                broad = any(kind is None or dotted(kind) in BROAD for kind in caught)
                broad = broad and not (isinstance(last, ast.Raise) and last.exc is None)
            else:
                broad = isinstance(node, ast.Call) and dotted(node).rpartition(".")[2] == "suppress"
                broad = broad and any(dotted(kind) in BROAD for kind in node.args)
            if broad:
                issues.append(f"{module.path}:{node.lineno}: catches every error; name the one that is expected")
    return issues


def open_ends(modules: Mapping[str, Module]) -> list[str]:
    """Report notes of unfinished work."""
    return [
        f"{module.path}:{number}: holds a note of unfinished work; finish it, or log it in docs/log.md"
        for module in modules.values()
        for number, line in enumerate(module.lines, 1)
        if OPEN_END.search(line)
    ]


def not_implemented(modules: Mapping[str, Module]) -> list[str]:
    """Report NotImplementedError outside an abstract contract.

    A contract is a class that derives from ABC or Protocol, or any class in a file `base.py`; the `raise` must be all
    that the method does, so that half an implementation cannot hide behind it.
    """
    issues = []
    for module in modules.values():
        contract = {
            node.body[-1].lineno
            for owner in ast.walk(module.tree)
            if isinstance(owner, ast.ClassDef) and (module.path.endswith("/base.py") or _is_abstract(owner))
            for node in flat(owner.body)
            if isinstance(node, ast.FunctionDef) and len(node.body) == 1 + (ast.get_docstring(node) is not None)
        }
        issues += [
            f"{module.path}:{node.lineno}: raises NotImplementedError; implement it, or raise UserError for bad input"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Raise) and dotted(node.exc) == "NotImplementedError" and node.lineno not in contract
        ]
    return issues


def _is_abstract(owner: ast.ClassDef) -> bool:
    names = [*owner.bases, *(keyword.value for keyword in owner.keywords)]
    bases = {dotted(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2] for base in names}
    return bool(bases & {"ABC", "ABCMeta", "Protocol"})


def comments(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each comment; strings that only look like one are not yielded."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def unexplained_suppressions(modules: Mapping[str, Module]) -> list[str]:
    """Report suppressions (of ruff or mypy) that lack a code or a reason: `# type: ignore[code]  # why it is right`."""
    issues = []
    for module in modules.values():
        for number, text in comments(module):
            found = SUPPRESSION.search(text)
            if found and not EXPLAINED.match(found["rest"]):
                issues.append(
                    f"{module.path}:{number}: a suppression without code or reason; fix the cause or add them"
                )
    return issues


def banners(modules: Mapping[str, Module]) -> list[str]:
    """Report comments that draw lines."""
    return [
        f"{module.path}:{number}: a banner; delete it, or split the file where it stands"
        for module in modules.values()
        for number, text in comments(module)
        if BANNER.search(text)
    ]
