"""The pictures of docs/classical.md, made by running the page's own code in docs/images.

python -m benchmarks.classical_pictures
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Run every Python block of the page, each on its own, where its pictures belong."""
    page = (DOCS / "classical.md").read_text(encoding="utf-8")
    os.chdir(DOCS / "images")
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/classical.md", "exec"), {"__name__": "__main__"})
    print(*sorted(path.name for path in Path.cwd().glob("classical_*.png")))


if __name__ == "__main__":
    main()
