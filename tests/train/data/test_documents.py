import json
import sysconfig

import pytest

from mixtura.errors import UserError
from mixtura.train.data import Document, embedded_corpus, read_documents
from mixtura.train.data.documents import distinct_topics


def tree(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(reading):
    return [(document.name, document.domain) for document in reading.documents]


@pytest.fixture(scope="module")
def embedded():
    return embedded_corpus()


def test_the_embedded_corpus_holds_the_library_its_prose_and_no_duplicates(embedded):
    documents = {(document.domain, document.name): document.text for document in embedded.documents}
    assert len(documents) == len(embedded.documents) == len(set(documents.values()))
    assert list(documents) == sorted(documents)
    assert "def dataclass(" in documents["python", "dataclasses.py"]
    assert any(name.startswith("topics/") for domain, name in documents if domain == "prose")
    assert sum(map(len, documents.values())) > 5_000_000


def test_the_embedded_library_holds_no_tests_no_packages_and_nothing_of_this_machine(embedded):
    python = [document for document in embedded.documents if document.domain == "python"]
    parts = {part for document in python for part in document.name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pydoc_data"}
    assert not any(sysconfig.get_path("stdlib") in document.text for document in embedded.documents)


def test_without_sources_the_error_says_to_bring_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    with pytest.raises(UserError, match=r"standard library's source files in .*, found none; .* --data.path"):
        embedded_corpus()


def test_topics_lose_what_a_longer_topic_says_and_go_if_little_is_left():
    shared, own = "A paragraph that both of the topics hold. ", "A paragraph that only one topic holds, and long. "
    topics = {"whole": f"Whole\n\n{shared}\n\n{own * 3}", "half": f"{own}\n\n{shared}", "part": f"Part\n\n  {shared}"}
    kept = distinct_topics(topics)
    assert sorted(kept) == ["half", "whole"]
    assert sum(text.count(shared.strip()) for text in kept.values()) == 1


def test_one_file_is_one_domain_named_after_it(tmp_path):
    tree(tmp_path, poems_dot_txt="Two roads")
    assert read_documents(tmp_path / "poems.txt").documents == (Document("poems.txt", "poems", "Two roads"),)


def test_subfolders_are_domains_and_other_files_take_the_folders_name(tmp_path):
    root = tree(tmp_path / "texts", a_dot_md="0", en__x_dot_txt="1", en__deep__y_dot_py="2", fr__z_dot_txt="3")
    tree(root, en__picture_dot_png="4", _dot_git__config_dot_txt="5", fr__rows_dot_jsonl='{"text": "6"}\n{"text": "7"}')
    reading = read_documents(root)
    assert names(reading) == [
        ("a.md", "texts"),
        ("en/x.txt", "en"),
        ("en/deep/y.py", "en"),
        ("fr/rows.jsonl#1", "fr"),
        ("fr/rows.jsonl#2", "fr"),
        ("fr/z.txt", "fr"),
    ]
    assert reading.report() == "6 documents; left out: 1 files of other kinds"


def test_a_domain_column_overrules_the_files_name(tmp_path):
    rows = [{"text": str(i), "language": language} for i, language in enumerate(["en", "fr", "en", 7])]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    domains = [domain for _, domain in names(read_documents(tmp_path / "all.jsonl", "text", "language"))]
    assert domains == ["en", "fr", "en", "7"]


def test_a_glob_takes_the_names_of_the_folders(tmp_path, monkeypatch):
    tree(tmp_path, en__x_dot_txt="1", fr__x_dot_txt="2", fr__y_dot_md="3", z_dot_txt="4")
    assert names(read_documents(f"{tmp_path}/*/*.txt")) == [("en/x.txt", "en"), ("fr/x.txt", "fr")]
    monkeypatch.chdir(tmp_path)
    assert names(read_documents("fr/*")) == [("x.txt", "fr"), ("y.md", "fr")]
    assert [name for name, _ in names(read_documents("**/*.txt"))] == ["en/x.txt", "fr/x.txt", "z.txt"]


def test_empty_and_repeated_texts_are_counted(tmp_path):
    tree(tmp_path, a_dot_txt="same", b_dot_txt="same", c_dot_txt=" \n", d_dot_txt="other")
    reading = read_documents(tmp_path)
    assert [document.name for document in reading.documents] == ["a.txt", "d.txt"]
    assert reading.skipped == (("empty", 1), ("repeated", 1))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "expected a file, a folder or a glob, found nothing; check --data.path"),
        ("*.rst", "expected a file, a folder or a glob, found nothing"),
        ("a.png", "expected a file of .jsonl .csv .parquet .txt .md or source code, got '.png'"),
        ("pictures", "expected at least one file of .* got 1 files of other kinds"),
        ("void", "expected at least one file of .* got 0 files of other kinds"),
        ("blank.txt", "got only empty ones"),
    ],
)
def test_a_path_without_text_is_one_clear_error(tmp_path, path, message):
    tree(tmp_path, a_dot_png="", pictures__a_dot_png="", blank_dot_txt="\n\n")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=message):
        read_documents(tmp_path / path)
