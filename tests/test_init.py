"""The public names: what `import mixtura as mx` offers."""

import mixtura as mx


def test_every_name_of_the_list_exists_once():
    assert len(set(mx.__all__)) == len(mx.__all__)
    assert all(hasattr(mx, name) for name in mx.__all__)
