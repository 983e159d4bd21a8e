"""Compiling the native kernel: what is compiled, and what happens where it cannot be."""

import pytest

from mixtura.kernels import build


def test_every_variant_of_x86_has_its_flags_and_others_have_the_portable_one():
    flags = dict(build.variants("x86_64"))
    assert list(flags) == ["avx512_bf16", "avx512", "avx2", "baseline"]
    assert "-mavx512bf16" in flags["avx512_bf16"]
    assert "-mavx512bf16" not in flags["avx512"]
    assert flags["baseline"] == ()
    assert dict(build.variants("aarch64")) == {"baseline": ()}


def test_the_fingerprint_follows_the_sources(monkeypatch, tmp_path):
    (tmp_path / "a.h").write_text("1")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    before = build.fingerprint()
    (tmp_path / "a.h").write_text("2")
    assert build.fingerprint() != before


def test_without_a_compiler_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match="expected a C\\+\\+ compiler"):
        build.compiler()
    assert str(build.main()).startswith("mixtura: no native kernel: expected a C++ compiler")


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    cxx = tmp_path / "broken"
    cxx.write_text("#!/bin/sh\necho 'cannot do that' >&2\nexit 3\n")
    cxx.chmod(0o755)
    monkeypatch.setenv("CXX", str(cxx))
    with pytest.raises(build.BuildError, match="cannot do that"):
        build.build(tmp_path / "made.so")
    assert not (tmp_path / "made.so").exists()
