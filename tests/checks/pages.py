"""Documentation pages: links that lead somewhere, Python blocks that run."""

import doctest
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>```+|~~~+)\s*(?P<language>[\w+-]*)")
LINK = re.compile(
    r"\]\(\s*<?(?P<inline>[^)\s>]+)|^\s*\[[^\]]+\]:\s*<?(?P<reference>[^\s>]+)|(?:src|href)=\"(?P<html>[^\"]+)\""
)
NO_RUN = re.compile(r"<!--\s*no-run\b.*-->")
OUTSIDE = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: where its first line stands (1-based), its language, its text, and whether it may run."""

    line: int
    language: str
    text: str
    runs: bool


def pages(root: Path) -> list[Path]:
    """List the pages that are checked."""
    top = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [page for page in top if page.exists()] + sorted((root / "docs").rglob("*.md"))


def split(text: str) -> tuple[list[tuple[int, str]], list[Block]]:
    """Split a page into its numbered prose lines and its fenced blocks."""
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        opening = FENCE.match(line)
        if not opening:
            prose.append((number, line))
            continue
        above = next((words for _, words in reversed(prose) if words.strip()), "")
        adjacent = bool(NO_RUN.search(above)) and not _prose_between(prose, blocks)
        body = "".join(_inside(lines, opening["fence"], indent=len(opening["indent"])))
        blocks.append(Block(line=number + 1, language=opening["language"].lower(), text=body, runs=not adjacent))
    return prose, blocks


def _prose_between(prose: list[tuple[int, str]], blocks: list[Block]) -> bool:
    """Whether the last prose line belongs to the block before, so that one comment marks one block."""
    last = max((number for number, words in prose if words.strip()), default=0)
    return bool(blocks) and last < blocks[-1].line


def _inside(lines: Iterator[tuple[int, str]], fence: str, *, indent: int) -> Iterator[str]:
    for _, line in lines:
        if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            return
        yield (line[indent:] if not line[:indent].strip() else line) + "\n"


def anchors(text: str) -> set[str]:
    """Give the anchors of a page as GitHub makes them: headings, numbered from the second of a name, and HTML ids."""
    found: set[str] = set()
    for _, line in split(text)[0]:
        found.update(re.findall(r"(?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r"^#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading[1]).lower()
            kept = (c for c in plain if c in " -_" or unicodedata.category(c)[0] in "LNM")
            slug = "".join(kept).replace(" ", "-")
            count = 0
            while (name := f"{slug}-{count}" if count else slug) in found:
                count += 1
            found.add(name)
    return found


def broken_links(root: Path) -> list[str]:
    """Report relative links of the pages that point at no file of the checkout, or at no heading of a page."""
    issues = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        for number, line in split(text)[0]:
            for match in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
                target = next(group for group in match.groups() if group)
                if not OUTSIDE.match(target) and (reason := _broken(root, page, target)):
                    where = f"{page.relative_to(root).as_posix()}:{number}"
                    issues.append(f"{where}: the link {target} {reason}; correct or delete it")
    return issues


def _broken(root: Path, page: Path, target: str) -> str | None:
    name, _, anchor = unquote(target).partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(root.resolve()) and name:
        return "leads out of the checkout"
    if not path.exists():
        return "points at no file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
        return f"points at no heading of {path.name}"
    return None


def python_blocks(page: Path) -> list[Block]:
    """List the blocks of a page that must run: fenced as python, without `<!-- no-run -->` on the line above."""
    blocks = split(page.read_text(encoding="utf-8"))[1]
    return [block for block in blocks if block.language in {"python", "py", "pycon"} and block.runs]


def run_block(page: Path, block: Block) -> None:
    """Run a block in a fresh namespace, as a doctest if it holds prompts; errors point at the page's own lines."""
    space: dict[str, Any] = {"__name__": "__main__"}
    if re.search(r"^\s*>>> ", block.text, re.MULTILINE):
        test = doctest.DocTestParser().get_doctest(block.text, space, page.name, str(page), block.line - 1)
        doctest.DebugRunner().run(test)
    else:
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True), space)
