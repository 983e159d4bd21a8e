import errno
import os
from pathlib import Path

import pytest

from mixtura.errors import UserError
from mixtura.train.files import new_folder, write_file


@pytest.mark.parametrize(
    ("is_whole", "kept"),
    [(None, "second.txt"), (Path.exists, "first.txt"), (lambda path: (path / "second.txt").exists(), "second.txt")],
)
def test_a_folder_appears_whole_and_replaces_only_a_damaged_one(tmp_path, is_whole, kept):
    target = tmp_path / "cache" / "result"
    for name in ("first.txt", "second.txt"):
        with new_folder(target, what="the result", is_whole=is_whole) as temporary:
            (temporary / name).write_text("text")
            assert not (target / name).exists()
    assert [path.name for path in target.iterdir()] == [kept]
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_nothing_is_left_of_a_folder_that_failed(tmp_path):
    def fail():
        with new_folder(tmp_path / "result", what="the result") as temporary:
            (temporary / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left in .* for the result; free some, or choose another folder"),
        (errno.EDQUOT, "no space left in"),
        (errno.EROFS, "cannot write the result in .*: Read-only file system; make it writable"),
    ],
)
def test_a_disk_that_refuses_is_one_clear_error(tmp_path, monkeypatch, number, message):
    def full(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=message), new_folder(tmp_path / "result", what="the result") as temporary:
        (temporary / "a.txt").write_text("a")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write a in .*cache: File exists"):
        write_file(tmp_path / "cache" / "a", "text")
    with (
        pytest.raises(UserError, match=r"cannot write a in .*cache: File exists"),
        new_folder(tmp_path / "cache" / "a", what="a"),
    ):
        pass
