import mixtura as mx
from mixtura import surgery


def test_every_name_is_there_and_documented_with_an_example():
    for name in surgery.__all__:
        assert "Example:" in getattr(surgery, name).__doc__, name
    assert mx.moefy is surgery.moefy
    assert mx.surgery is surgery
