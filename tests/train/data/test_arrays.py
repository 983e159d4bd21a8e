import sys

import numpy as np
import pytest

from mixtura.errors import UserError
from mixtura.train.data import arrays


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_saved_file_is_plain_npy_and_read_only_when_loaded(tmp_path, dtype):
    parts = [np.arange(5, dtype=dtype), np.arange(3, dtype=dtype)]
    assert arrays.save(tmp_path / "x.npy", parts) == 8
    loaded = arrays.load(tmp_path / "x.npy")
    assert loaded.dtype == dtype
    assert loaded.tolist() == np.load(tmp_path / "x.npy").tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert not loaded.flags.writeable


def test_other_arrays_are_refused(tmp_path):
    for name, array in {"float": np.zeros(3), "square": np.zeros((2, 2), dtype="uint16")}.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match="expected one row of token ids"):
            arrays.load(tmp_path / f"{name}.npy")


def test_without_numpy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "mixtura.train.data.arrays")
    with pytest.raises(UserError, match=r"needs numpy; run: pip install 'mixtura\[train\]'"):
        __import__("mixtura.train.data.arrays")
