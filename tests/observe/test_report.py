import base64
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest

from mixtura.errors import UserError
from mixtura.observe.report import write_report
from tests.observe.fabricate import fabricate, metrics

VOID = {"meta", "link", "input", "br", "hr", "img"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script>",
    "\"'><img src=x onerror=alert(1)>",
    "evil\u202etxt",
    "<!--",
    "%{x}",
)


class Page(HTMLParser):
    """Checks that elements are balanced; keeps the elements, the texts and the scripts."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.texts, self.scripts = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = "script" in self.open
        (self.scripts if inside else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        return json.loads(self.scripts[0], parse_constant=pytest.fail)


def read(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return read(fabricate(tmp_path_factory.mktemp("runs") / "tiny", steps=40))


def test_page_has_all_sections_in_order(page):
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["loss", "load", "specialisation", "routing", "tokens", "generated", "configuration"]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"#{section}" for section in sections]


def test_headline_numbers(page):
    rows = list(metrics(steps=40))
    loss = rows[-1]["val_loss"]["mean"]
    late = [16 * max(row["load"]["blocks.3.ff"]) for row in rows[-4:]]
    for value in (
        f"Validation loss {loss:.3f} nats/byte",
        f"In bits {loss / math.log(2):.3f} bits/byte",
        "Parameters 11.5 M 3.41 M active at a time (30%)",
        "Training tokens 164 k in 40 steps",
        "Training time 6.8 s",
        f"Final imbalance {sum(late) / 4:.2f} busiest expert over the mean, blocks.3.ff",
    ):
        assert value in page.text


def test_page_loads_nothing(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert attributes.get(name, "#").startswith("#")
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _ in page.elements)
    source = " ".join([*page.texts, page.scripts[0], page.scripts[-1]])  # all but plotly.js, which only names addresses
    assert not re.search(r"https?:|url\(|@import|\bimport\b|fetch\(", source)
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_inlined_once(page):
    assert len(page.scripts) == 3
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_every_plot_has_its_figure(page):
    names = [attributes["data-figure"] for _, attributes in page.elements if "data-figure" in attributes]
    assert names == ["loss", "load", "imbalance", "specialisation", "dropped", "entropy"]
    assert {name: len(page.data["figures"][name]) for name in names} == dict.fromkeys(names, 1) | {
        "load": 2,
        "specialisation": 2,
    }


def test_samples_hold_pieces_and_experts_by_layer(page):
    samples = page.data["samples"]
    assert samples["layers"] == ["blocks.1.ff", "blocks.3.ff"]
    assert samples["experts"] == [16, 16]
    for text in samples["texts"]:
        assert {len(chosen) for chosen in text["experts"]} == {len(text["pieces"])}
    assert "".join(samples["texts"][0]["pieces"]).startswith("def merge(left, right):\n    ")


def test_hostile_names_and_texts_stay_text(tmp_path):
    run = fabricate(tmp_path / "run", steps=5, domains=HOSTILE)
    plain = len(read(fabricate(tmp_path / "plain", steps=5, domains=[f"d{i}" for i in range(len(HOSTILE))])).elements)
    config = json.loads((run / "config.json").read_text()) | {"recipe": HOSTILE[0]}
    (run / "config.json").write_text(json.dumps(config))
    seen = json.loads((run / "observations.json").read_text())
    size = len(seen["samples"][0]["pieces"])
    seen["samples"][0]["pieces"] = [HOSTILE[i % len(HOSTILE)] for i in range(size)]
    seen["generated"] = [
        {"prompt": HOSTILE[1], "text": HOSTILE[0] + "\u2066\ud800"},
        {"prompt": "", "text": HOSTILE[2]},
    ]
    (run / "observations.json").write_text(json.dumps(seen))

    page = read(run)
    assert len(page.elements) == plain
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len(page.scripts) == 3
    assert not set("<>&") & set(page.scripts[0])
    assert page.data["samples"]["texts"][0]["pieces"][:3] == list(HOSTILE[:3])
    assert HOSTILE[0] + "\\u2066\\ud800" in page.text
    assert "\u202e" not in "".join(page.texts + page.scripts[:1])
    names = page.data["figures"]["specialisation"][0]["layout"]["yaxis"]["ticktext"]
    assert names[1] == "&lt;/script&gt;"


def test_dense_run_says_so(tmp_path):
    page = read(fabricate(tmp_path / "run", steps=3, layers=0, domains=("python",)))
    assert page.text.count("This model is dense") == 4
    assert "Final imbalance" not in page.text
    assert "The house was quiet" in page.text
    assert page.data["samples"]["texts"][0]["experts"] == []


def test_missing_observations_say_how_to_make_them(tmp_path):
    run = fabricate(tmp_path / "run", steps=3, seen=False)
    page = read(run)
    assert page.text.count(f"mixtura report {run}") == 3
    assert "specialisation" not in page.data["figures"]


def test_cut_short_metrics_are_said_on_the_page(tmp_path):
    run = fabricate(tmp_path / "run", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert "The last line of metrics.jsonl is cut short" in read(run).text


def test_nan_losses_are_gaps_in_valid_json(tmp_path):
    run = fabricate(tmp_path / "run", steps=6)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[2]["loss"] = math.nan
    rows[3]["val_loss"]["python"] = math.inf
    rows[4]["load"]["blocks.1.ff"] = [math.nan] * 16
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = read(run).data["figures"]
    raw, median, *validation = figures["loss"][0]["data"]
    assert raw["y"][2] is None
    assert median["y"][2] is None
    assert next(trace["y"] for trace in validation if trace["name"] == "validation, python")[3] is None
    assert [row[4] for row in figures["load"][0]["data"][0]["z"]] == [None] * 16


def test_long_run_is_thinned(tmp_path):
    run = fabricate(tmp_path / "run", steps=2, layers=1, experts=2, domains=("python",))
    rows = (
        {"step": i, "loss": 2.0 + i % 7, "load": {"blocks.1.ff": [0.4, 0.6]}, "val_loss": {"python": 1.0}}
        for i in range(1, 20_001)
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = read(run).data["figures"]
    assert {len(trace["x"]) for trace in figures["loss"][0]["data"]} == {1500}
    heat = figures["load"][0]["data"][0]
    assert len(heat["x"]) == 200
    assert heat["z"] == [[0.8] * 200, [1.2] * 200]
    assert len(figures["imbalance"][0]["data"][0]["x"]) == 1500
    assert (run / "report.html").stat().st_size < 7e6


def test_old_page_stays_until_the_new_one_is_whole(tmp_path):
    run = fabricate(tmp_path / "run", steps=3)
    (run / "report.html").write_text("old")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="complete step"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "observations.json",
        "report.html",
    ]


@pytest.mark.parametrize("package", ["jinja2", "plotly.graph_objects"])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    run = fabricate(tmp_path / "run", steps=3)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'mixtura\[train,plots\]'"):
        write_report(run)


def panels(text):
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(9)).decode()
    named = {"title": text, "note": text}
    return [
        {"kind": "table", **named, "columns": [text, "b"], "rows": [[text, 0.5]]},
        {"kind": "heatmap", **named, "columns": [text, "b"], "rows": [text], "values": [[0.5, None]], "axis": text},
        {"kind": "lines", **named, "columns": [1, 2], "rows": [text], "values": [[0.5, 0.25]], "axis": text},
        {"kind": "picture", **named, "png": png},
    ]


def of_images(run, shown):
    """A run of another kind: its own units, scores, and panels."""
    config = json.loads((run / "config.json").read_text())
    units = {"loss": "nats/image", "items": "images", "group": "class"}
    (run / "config.json").write_text(json.dumps(config | {"task": "vision", "units": units}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [row | ({"val_score": {"accuracy": 0.875}} if "val_loss" in row else {}) for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    seen = json.loads((run / "observations.json").read_text()) | {"samples": [], "generated": [], "panels": shown}
    (run / "observations.json").write_text(json.dumps(seen))
    return read(run)


def test_a_task_shows_its_own_units_scores_and_panels(tmp_path):
    page = of_images(fabricate(tmp_path / "run", steps=5), panels("hello"))
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["loss", "shown", "load", "specialisation", "routing", "configuration"]
    for value in ("accuracy 0.875 on held-out data", "Training images", "Specialisation by class", "nats/image; best"):
        assert value in page.text
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 1
    assert pictures[0].startswith("data:image/png;base64,")
    assert page.data["figures"]["panel-1"][0]["data"][0]["z"] == [[0.5, None]]
    assert page.data["figures"]["panel-2"][0]["data"][0]["y"] == [0.5, 0.25]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_panels_stay_text(tmp_path, text):
    page = of_images(fabricate(tmp_path / "run", steps=5), panels(text))
    plain = of_images(fabricate(tmp_path / "plain", steps=5), panels("hello"))
    assert len(page.elements) == len(plain.elements)
    drawn = json.dumps([page.data["figures"][f"panel-{i}"] for i in (1, 2)])
    assert "<img" not in drawn
    assert "<script" not in drawn
