"""The pages: every relative link leads somewhere, every Python block runs."""

from pathlib import Path

import pytest

from tests.checks import pages

ROOT = Path(__file__).parents[1]
# The design speaks of names that are still to be built, and its blocks are a list of them.
NOT_RUN = {"docs/design.md"}
RUN = [page for page in pages.pages(ROOT) if page.relative_to(ROOT).as_posix() not in NOT_RUN]


def test_links_lead_somewhere():
    issues = pages.broken_links(ROOT)
    assert not issues, "\n".join(issues)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in pages.python_blocks(page):
        pages.run_block(page, block)
