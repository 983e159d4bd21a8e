import json

import pytest

from mixtura.errors import UserError
from mixtura.observe.observations import read_observations
from tests.observe.fabricate import observations


def test_reads_what_was_written(tmp_path):
    raw = observations(layers=2, experts=4, domains=("python", "prose"))
    path = tmp_path / "observations.json"
    path.write_text(json.dumps(raw))
    seen = read_observations(path)
    assert seen.domains == ["python", "prose"]
    assert seen.counts == {name: layer["counts"] for name, layer in raw["layers"].items()}
    assert seen.samples[1].pieces == raw["samples"][1]["pieces"]
    assert seen.generated[0].prompt == "def "


def test_missing_file_is_none(tmp_path):
    assert read_observations(tmp_path / "observations.json") is None


SAMPLE = {"domain": "a", "pieces": ["x"], "experts": {"ff": [0]}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"domains": ["a"], "layers": {"ff": {"counts": [[1], [2]]}}}, "matrix of 1 domains"),
        ({"domains": ["a"], "layers": {"ff": {"counts": [[0, 0]]}}}, "all zero"),
        ({"domains": ["a"], "layers": {"ff": {}}}, "counts"),
        ({"samples": [SAMPLE | {"experts": {"ff": [0, 1]}}]}, "2 experts for 1 pieces"),
        ({"samples": [SAMPLE | {"experts": {"ff": [-1]}}]}, "negative"),
        ({"samples": [SAMPLE, SAMPLE | {"experts": {}}]}, "different layers"),
        ({"generated": ["text"]}, "TypeError"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, raw, message):
    path = tmp_path / "observations.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        read_observations(path)
