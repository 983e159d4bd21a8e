"""The Bibles: markup, what a person without the packages is told, and which verses of small made ones are paired."""

import pytest

from mixtura.errors import UserError
from mixtura.train.data import bibles
from mixtura.train.data.parallel import ParallelConfig, read_pairs
from tests.train.data.sword import write_bibles


def test_the_way_to_the_packages_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(bibles, "FOLDER", tmp_path / "none")
    with pytest.raises(UserError) as caught:
        read_pairs(ParallelConfig())
    for part in (
        "none: expected Bibles: a folder with mods.d/engWEB2015eb.conf, found none",
        "sudo apt-get install sword-text-web sword-text-sparv",
        "dpkg -x",
        "--data.path bibles/usr/share/sword",
        "--data.source a.en --data.target a.es",
    ):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"expected a .tsv file or a folder with mods.d/"):
        read_pairs(ParallelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '<w lemma="x">In</w> the <w>beginning</w>, God<note place="foot"><w>or</w> more</note>made',
            "In the beginning, God made",
        ),
        (
            '<title type="psalm">A Psalm.</title><l level="1" sID="a"/>Lord,<l eID="a"/><l sID="b"/>hear',
            "A Psalm. Lord, hear",
        ),
        ('he said <q marker="">yes</q> <note>n</note>.', "he said yes."),
        ("<div sID='pv1'/> a &amp;\n b <chapter eID='x'/>", "a & b"),
        ("<note>only a note</note>", ""),
    ],
)
def test_markup_goes_and_text_stays(text, expected):
    assert bibles.plain(text) == expected


def test_verses_of_both_are_paired_and_the_others_counted(tmp_path):
    english = {("Genesis", 1, 1): "First.", ("Genesis", 1, 2): "Second.", ("Ruth", 1, 1): "Ruth.", ("Jude", 1, 3): "J."}
    spanish = {
        ("Genesis", 1, 1): "Primero.",
        ("Ruth", 1, 1): "Rut.",
        ("Jude", 1, 3): "J. <note>x</note>",
        ("Jude", 1, 4): "K.",
    }
    write_bibles(tmp_path, english, spanish)
    verses = bibles.read(bibles.sword_folder(str(tmp_path)))
    assert verses.unpaired == 2
    assert verses.pairs == (
        bibles.Verse("Genesis", ("First.", "Primero.")),
        bibles.Verse("Ruth", ("Ruth.", "Rut.")),
        bibles.Verse("Jude", ("J.", "J.")),
    )
    reading = read_pairs(ParallelConfig(path=str(tmp_path), held_out=("Ruth", "Jude")))
    assert [pair.source for pair in reading.train] == ["First.", "Primero."]
    assert [pair.source for pair in reading.val] == ["Ruth.", "Rut.", "J.", "J."]
    assert reading.skipped == (("verses in one Bible only", 2),)


def test_books_to_hold_out_must_be_there(tmp_path):
    write_bibles(tmp_path, {("Ruth", 1, 1): "Ruth."}, {("Ruth", 1, 1): "Rut."})
    with pytest.raises(UserError, match=r"data.held_out: expected some of Ruth; got Tobit"):
        read_pairs(ParallelConfig(path=str(tmp_path), held_out=("Ruth", "Tobit")))
    with pytest.raises(UserError, match=r"data.held_out: expected at least one book, got none"):
        read_pairs(ParallelConfig(path=str(tmp_path), held_out=()))


def test_a_damaged_bible_is_named(tmp_path):
    write_bibles(tmp_path, {("Ruth", 1, 1): "Ruth."}, {("Ruth", 1, 1): "Rut."})
    for path in (tmp_path / "modules").rglob("ot.bzz"):
        path.write_bytes(b"no Bible")
    with pytest.raises(
        UserError, match=r"expected verses in the Bible engWEB2015eb, got none; install its package again"
    ):
        bibles.read(tmp_path)
    for path in (tmp_path / "modules").rglob("*.b*"):
        path.unlink()
    with pytest.raises(UserError, match=r"cannot read the Bible engWEB2015eb: .*; install its package again"):
        bibles.read(tmp_path)
