"""Does a mixture tell texts apart better than its dense twin, and than a linear model?

    python -m benchmarks.classify packages
    python -m benchmarks.classify languages --django FOLDER

packages: which package of the standard library a piece of code is of. languages: which of Django's translations a
string is of; FOLDER holds django's wheel, unpacked: pip download --no-deps django && unzip django-*.whl -d FOLDER.
The linear model is a logistic regression on letter n-grams weighted by tf-idf, of scikit-learn.
"""

import argparse
import gettext
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, load, measured_on, save, table
from mixtura.train.inspect import evaluate_run
from mixtura.train.loop import train
from mixtura.train.recipes import get_recipe
from mixtura.train.tasks.classification import ClassificationConfig, ClassificationTask

LEAST = 250  # strings of a language that is told apart


def translations(django: Path, out: Path) -> Path:
    """Write every translated string with its language as JSON lines; returns the file."""
    rows: dict[str, set[str]] = {}
    for catalogue in sorted(django.glob("django/**/locale/*/LC_MESSAGES/django.mo")):
        with catalogue.open("rb") as file:
            entries = gettext.GNUTranslations(file)._catalog  # the module shows its entries in no other way
        texts = {text for key, text in entries.items() if key and text not in (key, "")}
        rows.setdefault(catalogue.parts[-3], set()).update(texts)
    kept = {language: sorted(texts) for language, texts in rows.items() if len(texts) >= LEAST}
    path = out / "translations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": name}) for name, texts in sorted(kept.items()) for text in texts]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def configurations(what: str, options: argparse.Namespace) -> dict[str, ClassificationConfig]:
    """The mixture and its dense twin on one of the two data sets."""
    configs = {}
    for name in ("classify-tiny", "classify-tiny-dense"):
        config = get_recipe(name)
        assert isinstance(config, ClassificationConfig)
        config = replace(config, out=str(options.out), name=f"{what}-{name}", steps=options.steps or config.steps)
        if what == "languages":
            path = translations(options.django, options.out)
            data = replace(config.data, path=str(path), domain_column="label", vocab_size=4096, seq_len=48)
            config = replace(config, data=replace(data, batch_size=64))
        configs[name] = config
    return configs


def linear(task: ClassificationTask) -> float:
    """Macro F1 of a logistic regression on the very same texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    texts, labels = zip(*(_texts(task, chunks) for chunks in (task.train, task.held_out)), strict=True)
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), max_features=100_000, sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=200)
    model.fit(vectors.fit_transform(texts[0]), labels[0])
    return float(f1_score(labels[1], model.predict(vectors.transform(texts[1])), average="macro"))


def _texts(task: ClassificationTask, chunks: Any) -> tuple[Sequence[str], Sequence[int]]:
    decode = task.corpus.tokenizer.decode
    places = chunks.places.tolist()
    texts = [decode(chunks.tokens[label][start : start + length].tolist()) for label, start, length in places]
    return texts, [label for label, _, _ in places]


def measure(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train both, fit the linear model, and give all scores."""
    rows: dict[str, Any] = {}
    configs = configurations(what, options)
    for name, config in configs.items():
        folder = train(config)
        evaluation, _ = evaluate_run(folder)
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows[name] = {**evaluation.scores, "nats": evaluation.with_mean()["mean"], "parameters": facts["parameters"]}
    task = configs["classify-tiny"].prepare()
    rows["linear"] = {"macro F1": linear(task)}
    data = {
        "classes": list(task.corpus.domains),
        "train": len(task.train.places),
        "held out": len(task.held_out.places),
    }
    return {"data": data, "steps": configs["classify-tiny"].steps, "rows": rows}


def figures() -> str:
    """Both data sets, from the committed result."""
    result, rows = load("classify"), []
    for what in ("packages", "languages"):
        if what in result:
            part = result[what]
            scores = [
                f"{part['rows'][name]['macro F1']:.3f}" for name in ("linear", "classify-tiny-dense", "classify-tiny")
            ]
            rows.append([what, str(len(part["data"]["classes"])), f"{part['data']['train']:,}", *scores])
    header = ["macro F1", "classes", "texts", "linear, letter n-grams", "dense encoder", "mixture"]
    return f"{table(header, rows)}\n{measured_on(result)}\n"


def main() -> None:
    """Measure one data set, and put it into benchmarks/results/classify.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("packages", "languages"))
    parser.add_argument("--django", type=Path, default=Path("django"))
    parser.add_argument("--steps", type=int, default=0, help="0: as the recipe has")
    parser.add_argument("--out", type=Path, default=Path("runs/classify"), help="folder of the runs")
    options = parser.parse_args()
    result = measure(options.what, options)
    print(json.dumps(result, indent=1))
    known = load("classify") if (RESULTS / "classify.json").exists() else {}
    known.pop("machine", None)
    print(save("classify", known | {options.what: result}))


if __name__ == "__main__":
    main()
