"""Folders of results that appear whole or not at all, also after a crash, on a full disk, or in a race."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from mixtura.errors import UserError

ELSEWHERE = "or choose another folder"


@contextmanager
def new_folder(
    folder: Path, *, what: str, advice: str = ELSEWHERE, is_whole: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the place of `folder` when the block ends without an error.

    Files are on the disk before the rename, and a folder already there is moved aside, so that others see the old
    content or the new one and nothing between. With `is_whole`, a folder that another process has put there meanwhile
    stays if that says so: the same content must not vanish while the other opens it.

    Raises:
        UserError: see `writing`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as cache:
        ...     with new_folder(Path(cache, "result"), what="the result") as temporary:
        ...         _ = (temporary / "a.txt").write_text("a")
        ...     sorted(path.name for path in Path(cache).rglob("*"))
        ['a.txt', 'result']
    """
    with writing(folder.parent, what=what, advice=advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.parent / f".new-{uuid4().hex}"
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
            _replace(temporary, folder, is_whole)
            _sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        UserError: when the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder, "index", "a"), "text")
        ...     Path(folder, "index", "a").read_text()
        'text'
    """
    with writing(path.parent, what=path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".new-{uuid4().hex}"
        try:
            temporary.write_text(text, encoding="utf-8")
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, folder: Path, is_whole: Callable[[Path], bool] | None) -> None:
    while is_whole is None or not is_whole(folder):
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process may be doing the same, so the old folder may be gone by now.
            aside = folder.parent / f".old-{uuid4().hex}"
            with suppress(FileNotFoundError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            return


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk; Windows has no such call for folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path, *, what: str, advice: str = ELSEWHERE) -> Iterator[None]:
    """Around anything that writes: an error of the system becomes one clear line.

    Args:
        folder: where is written.
        what: what is written.
        advice: what to do once there is space, or the folder can be written.

    Raises:
        UserError: when the disk is full or the folder cannot be written.

    Example:
        >>> with writing(Path("runs/a"), what="the log", advice="then try again"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: no space left in runs/a for the log; free some, then try again
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left in {folder} for {what}; free some, {advice}") from error
        raise UserError(
            f"cannot write {what} in {folder}: {error.strerror or error}; make it writable, {advice}"
        ) from error
