"""Aligned texts as people have them: what is read, what is left out and counted, what is refused and how."""

import gzip

import pytest

from mixtura.errors import UserError
from mixtura.train.data.parallel import Pair, ParallelConfig, languages_of, read_lines, read_pairs
from tests.train.parallel_texts import sentences, text, write_files


def files(folder, english, spanish, **options):
    paths = [folder / "a.en", folder / "a.es"]
    for path, lines in zip(paths, (english, spanish), strict=True):
        path.write_bytes(lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode())
    return ParallelConfig(source=(str(paths[0]),), target=(str(paths[1]),), **options)


def everything(reading):
    return {*reading.train, *reading.val}


def test_lines_become_pairs_of_both_directions(tmp_path):
    source, target = write_files(tmp_path)
    reading = read_pairs(ParallelConfig(source=(str(source),), target=(str(target),), val_fraction=0.2))
    expected = {Pair("en", "es", text("en", numbers), text("es", numbers)) for numbers in sentences(240)}
    assert everything(reading) == expected | {pair.turned() for pair in expected}
    assert len(reading.train) + len(reading.val) == 480
    assert 0.1 < len(reading.val) / 480 < 0.3
    assert reading.left_out() == "left out: none"


def test_both_directions_of_a_pair_are_held_out_together(tmp_path):
    source, target = write_files(tmp_path)
    reading = read_pairs(ParallelConfig(source=(str(source),), target=(str(target),), val_fraction=0.3))
    assert {pair.turned() for pair in reading.val} == {*reading.val}
    # The same rows are held out whatever stands around them.
    fewer = ParallelConfig(
        source=(str(target),), target=(str(source),), pairs=("es-en",), both_ways=False, val_fraction=0.3
    )
    assert {pair for pair in reading.val if pair.source_language == "es"} == {*read_pairs(fewer).val}


def test_what_is_blank_or_repeated_is_counted_and_left_out(tmp_path):
    english = [f"line {n}" for n in range(40)] + ["", "alone", "line 3", "  "]
    spanish = [f"renglón {n}" for n in range(40)] + ["solo", "", "renglón 3", "\t"]
    reading = read_pairs(files(tmp_path, english, spanish, both_ways=False, val_fraction=0.3))
    assert reading.skipped == (("empty", 3), ("repeated", 1))
    assert len(everything(reading)) == 40
    assert not {*reading.train} & {*reading.val}


def test_only_a_line_feed_ends_a_line(tmp_path):
    english = [f"a{n}\u2028b\x0bc\x85d" for n in range(30)]
    reading = read_pairs(files(tmp_path, english, [f"e{n}" for n in range(30)], val_fraction=0.3))
    assert len(everything(reading)) == 60


def test_compressed_files_and_several_languages(tmp_path):
    paths = write_files(tmp_path, languages=("en", "es", "de"), count=120)
    packed = tmp_path / "numbers.en.gz"
    packed.write_bytes(gzip.compress(paths[0].read_bytes()))
    config = ParallelConfig(source=(str(packed),) * 2, target=(str(paths[1]), str(paths[2])), val_fraction=0.2)
    assert {pair.direction for pair in everything(read_pairs(config))} == {"en-es", "es-en", "en-de", "de-en"}
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read .*numbers.en.gz: "):
        read_pairs(config)


@pytest.mark.parametrize("header", ["", "source\ttarget\n"])
def test_a_table_of_two_columns(tmp_path, header):
    path = tmp_path / "rows.tsv"
    rows = "".join(f'"{text("en", n)}\t{text("es", n)}\n' for n in sentences(60))
    path.write_text(header + rows)
    reading = read_pairs(ParallelConfig(path=str(path), pairs=("en-es",), both_ways=False, val_fraction=0.3))
    assert {pair.source for pair in everything(reading)} == {f'"{text("en", n)}' for n in sentences(60)}


def test_a_table_that_names_languages(tmp_path):
    path = tmp_path / "rows.tsv.gz"
    rows = [f"{text('en', n)}\t{text(other, n)}\ten\t{other}" for other in ("es", "de") for n in sentences(90)] + [""]
    path.write_bytes(gzip.compress("\n".join(["source\ttarget\tsource_language\ttarget_language", *rows]).encode()))
    reading = read_pairs(ParallelConfig(path=str(path), both_ways=False, val_fraction=0.2))
    assert {pair.direction for pair in everything(reading)} == {"en-es", "en-de"}
    held_out = {pair.source for pair in reading.val}
    assert not held_out & {pair.source for pair in reading.train}  # the same English in both languages


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("one", ["line 2: expected 2 columns (source, target) or 4", "got 1"]),
        ("one\tuno\ten", ["line 2: expected 2 columns", "got 3"]),
        ("one\tuno", ["line 2: expected columns 3 and 4 with the languages, got 2 columns", "--data.pairs en-es"]),
        ("one\tuno\ten\ten", ["line 2, columns 3 and 4: expected two languages like en-es", "'en-en'"]),
        ("one\tuno\ten\t", ["line 2, columns 3 and 4: expected two languages like en-es", "'en-'"]),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, parts):
    path = tmp_path / "rows.tsv"
    path.write_text(f"two\tdos\ten\tes\n{row}\n")
    with pytest.raises(UserError) as caught:
        read_pairs(ParallelConfig(path=str(path)))
    assert str(path) in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    with pytest.raises(UserError, match=r"a.en and .*a.es: expected as many lines, got 3 and 2; each line of one must"):
        read_pairs(files(tmp_path, ["a", "b", "c"], ["d", "e"]))
    # A last line without its end is a line.
    assert len(read_lines(files(tmp_path, b"a\nb", b"c\nd\n").source[0] and tmp_path / "a.en")) == 2


def test_what_is_not_utf_8_is_named_with_its_line(tmp_path):
    config = files(tmp_path, b"one\nca\xf1a\n", b"uno\ndos\n")
    with pytest.raises(UserError, match=r"a.en, line 2, byte 3: expected UTF-8 text, got 0xf1; convert it: iconv"):
        read_pairs(config)


def test_empty_and_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected pairs of sentences, got none; left out: none"):
        read_pairs(files(tmp_path, b"", b""))
    (tmp_path / "a.es").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a.es: No such file"):
        read_pairs(ParallelConfig(source=(str(tmp_path / "a.en"),), target=(str(tmp_path / "a.es"),)))


def test_files_whose_names_tell_no_languages_need_them(tmp_path):
    for name in ("left.txt", "right.txt"):
        (tmp_path / name).write_text("".join(f"{name} {n}\n" for n in range(40)))
    where = {"source": (str(tmp_path / "left.txt"),), "target": (str(tmp_path / "right.txt"),)}
    with pytest.raises(UserError, match=r"expected names that end in two languages.*--data.pairs en-es"):
        read_pairs(ParallelConfig(**where))
    reading = read_pairs(ParallelConfig(**where, pairs=("x-y",), val_fraction=0.3))
    assert {pair.direction for pair in reading.train} == {"x-y", "y-x"}
    with pytest.raises(UserError, match=r"expected --data.pairs with one for each of 1 pairs of files, got 2"):
        read_pairs(ParallelConfig(**where, pairs=("x-y", "x-z")))


def test_a_direction_needs_pairs_on_both_sides(tmp_path):
    with pytest.raises(
        UserError, match=r"en-es: expected pairs to learn from and to be judged by, got (0 and 1|1 and 0)"
    ):
        read_pairs(files(tmp_path, ["a"], ["b"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "a", "source": ("b",), "target": ("c",)}, "expected --data.path or --data.source with --data.target"),
        (
            {"source": ("a", "b"), "target": ("c",)},
            "expected as many files in --data.target as in --data.source, got 1",
        ),
        ({"vocab_size": 9}, r"data.vocab_size: expected 257 \(bytes and end of text\) to 4194304, got 9"),
        ({"max_tokens": 0}, "data.max_tokens: expected at least 1, got 0"),
        ({"batch_tokens": 50, "max_tokens": 60}, r"data.batch_tokens: expected at least data.max_tokens \+ 2 = 62"),
        ({"val_fraction": 0.9}, "data.val_fraction: expected more than 0 and at most 0.5, got 0.9"),
        ({"seed": -1}, "data.seed: expected 0 or more, got -1"),
        ({"pairs": ("english",)}, "expected two languages like en-es, of letters, digits and _, got 'english'"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ParallelConfig(**options)


def test_languages_are_two():
    assert languages_of("en-zh_TW") == ("en", "zh_TW")
    for pair in ("en", "en-es-fr", "en-", "en-en", "e n-es"):
        with pytest.raises(UserError, match="expected two languages"):
            languages_of(pair)
