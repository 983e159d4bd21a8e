import doctest

import pytest

from tests.checks import pages
from tests.checks.tree import write_tree

GOOD = """\
# Title with `code` & more!
[there](docs/a.md) [anchor](docs/a.md#second-part-1) ![image](docs/i.svg) <a href="#title-with-code--more">up</a>
[web](https://example.org/x#y) [mail](mailto:a@example.org) [folder](docs) [ref][1] `[code](nowhere)` [id](#here)

[1]: <docs/a.md>
<span id="here"></span>

```markdown
[in a fence](nowhere.md)
# not a heading
```
"""


def test_links_that_lead_somewhere_pass(tmp_path):
    write_tree(
        tmp_path, {"README.md": GOOD, "docs/a.md": "# Second part\n## Second [part](../README.md)\n", "docs/i.svg": ""}
    )
    assert pages.broken_links(tmp_path) == []


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("[a](docs/b.md)", "points at no file"),
        ("![a](b.svg)", "points at no file"),
        ("[a]: docs/b.md", "points at no file"),
        ('<img src="b.svg">', "points at no file"),
        ("[a](docs/a.md#third)", "points at no heading of a.md"),
        ("[a](#not-a-heading)", "points at no heading of README.md"),
        ("[a](../outside.md)", "leads out of the checkout"),
        ("[good](docs/a.md) [a](gone.md 'title')", "points at no file"),
    ],
)
def test_broken_links_are_reported(tmp_path, link, reason):
    text = f"# Top\n```\n# not a heading\n```\n{link}\n"
    root = write_tree(tmp_path / "repo", {"README.md": text, "docs/a.md": "# First\n", "../outside.md": ""})
    (found,) = pages.broken_links(root)
    assert found.startswith("README.md:5: the link ")
    assert reason in found


def test_an_empty_readme_passes(tmp_path):
    write_tree(tmp_path, {"README.md": ""})
    assert pages.broken_links(tmp_path) == []
    assert pages.python_blocks(tmp_path / "README.md") == []


def blocks(tmp_path, text):
    page = write_tree(tmp_path, {"README.md": text}) / "README.md"
    return page, pages.python_blocks(page)


def test_python_blocks_are_found_and_marked_ones_left_out(tmp_path):
    text = """\
```python
a = 1
```
```bash
make
```
<!-- no-run: needs two machines -->

```python
raise SystemExit
```
```python
b = 2
```
* item
  ~~~python
  if b:
      c = 3
  ~~~
Words between <!-- no-run -->
and the block.
```py
d = 4
```
"""
    _, found = blocks(tmp_path, text)
    assert [(block.line, block.text) for block in found] == [
        (2, "a = 1\n"),
        (13, "b = 2\n"),
        (17, "if b:\n    c = 3\n"),
        (23, "d = 4\n"),
    ]


def test_a_block_that_fails_points_at_its_line_of_the_page(tmp_path):
    page, (block,) = blocks(tmp_path, "# Title\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        pages.run_block(page, block)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 5)


def test_each_block_starts_fresh(tmp_path):
    page, (first, second) = blocks(tmp_path, "```python\nx = 1\n```\n```python\nx\n```\n")
    pages.run_block(page, first)
    with pytest.raises(NameError):
        pages.run_block(page, second)


def test_blocks_with_prompts_run_as_doctests(tmp_path):
    page, (right, wrong) = blocks(tmp_path, "```python\n>>> 1 + 1\n2\n```\n```pycon\n>>> 1 + 1\n3\n```\n")
    pages.run_block(page, right)
    with pytest.raises(doctest.DocTestFailure):
        pages.run_block(page, wrong)
