"""The pictures of docs/classical.md and docs/hme.md, made by running the pages' own code in docs/images.

python -m benchmarks.classical_pictures
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Run every Python block of the pages, each on its own, where their pictures belong."""
    os.chdir(DOCS / "images")
    for name in ("classical", "hme"):
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for block in re.findall(r"(?<!-->\n)^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
            exec(compile(block, f"docs/{name}.md", "exec"), {"__name__": "__main__"})
        print(*sorted(path.name for path in Path.cwd().glob(f"{name}_*.png")))


if __name__ == "__main__":
    main()
