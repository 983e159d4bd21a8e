import mixtura.classical


def test_the_public_names_are_there_and_documented():
    for name in mixtura.classical.__all__:
        assert ">>> " in getattr(mixtura.classical, name).__doc__, f"{name} has no example"
