"""DeepSeek's and GLM's configs; their models are in `test_checkpoint.py`."""

import pytest

from mixtura.hub.latent import read_glm, read_v2, read_v3, write_glm, write_v2, write_v3
from mixtura.hub.library import make_config
from tests.hub.tiny import MODELS, SIZES


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("DeepSeek-V2", read_v2, write_v2),
        ("DeepSeek-V3", read_v3, write_v3),
        ("GLM-4-MoE", read_glm, write_glm),
    ],
)
def test_what_a_family_writes_in_its_own_way_is_what_its_config_said(name, read, write):
    kind, values = MODELS[name]
    theirs = make_config(kind, {**SIZES, **values})
    written = write(read(theirs))
    for key, value in written.items():
        assert getattr(theirs, key) == value or (key == "n_group" and getattr(theirs, key) is None), key
    assert written["n_shared_experts"] == 2
    assert written["first_k_dense_replace"] == 1


def test_more_dense_blocks_than_blocks_are_all_of_them():
    kind, values = MODELS["DeepSeek-V3"]
    assert read_v3(make_config(kind, {**SIZES, **values, "first_k_dense_replace": 9})).dense_blocks == (0, 1, 2)
