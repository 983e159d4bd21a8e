import math

import pytest

from mixtura.errors import UserError
from mixtura.train.data import DataConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 256}, r"data.vocab_size: expected 257 .* got 256"),
        ({"seq_len": 0}, "data.seq_len: expected at least 1, got 0"),
        ({"batch_size": -3}, "data.batch_size: expected at least 1, got -3"),
        ({"val_fraction": 0.0}, "data.val_fraction: expected more than 0 and at most 0.5, got 0.0"),
        ({"val_fraction": 0.6}, "data.val_fraction"),
        ({"val_fraction": math.nan}, "data.val_fraction"),
        ({"val_tokens": 100}, r"data.val_tokens: expected at least one window \(data.seq_len = 128\), got 100"),
        ({"max_mb": -1.0}, "data.max_mb: expected 0"),
        ({"max_mb": math.inf}, "data.max_mb"),
        ({"max_mb": math.nan}, "data.max_mb"),
        ({"seed": -1}, "data.seed: expected 0 or more, got -1"),
        ({"text_column": ""}, "data.text_column: expected a name"),
        ({"cache": ""}, "data.cache: expected a name"),
    ],
)
def test_a_value_out_of_range_is_one_clear_error(values, message):
    with pytest.raises(UserError, match=message) as caught:
        DataConfig(**values)
    assert "\n" not in str(caught.value)
