"""The report of a run: one HTML file that holds everything it shows and loads nothing from anywhere.

All that comes from the run folder is untrusted. Into the page it goes through jinja2's autoescape; into scripts only
as JSON in which no character can end the element (`_script_json`), and from there into the page as text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.observe import metrics, plots
from mixtura.observe.history import History, LayerHistory, mean, read_history, read_json, visible
from mixtura.observe.observations import Observations, Sample, read_observations
from mixtura.observe.panels import panel_figure
from mixtura.observe.series import columns, even, extremes, running_median

_CURVE_POINTS = 1500
_ALL_VALIDATION_POINTS = 12_000
_HEAT_COLUMNS = 200
_ALL_HEAT_CELLS = 200_000
_ALL_SAMPLE_POINTS = 150_000
Figure = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A headline number: what it is, its value, and a line that says more.

    Example:
        >>> Card("tokens", "4.1 M", "in 1000 steps").value
        '4.1 M'
    """

    label: str
    value: str
    note: str


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from its config.json, metrics.jsonl and observations.json.

    The page is complete in itself (no network) and replaces an older one only once it is whole. What is missing in
    the folder is said on the page.

    Args:
        run: the folder of the run.

    Returns:
        The path of the page.

    Raises:
        UserError: config.json or metrics.jsonl is missing or unusable, or jinja2 or plotly is not installed.

    Example:
        >>> write_report(Path("runs/none"))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a file 'runs/none/config.json', got none; is this the folder of a run?
    """
    config = read_json(run / "config.json")
    history = read_history(run / "metrics.jsonl")
    seen = read_observations(run / "observations.json")
    samples = _samples(seen)
    finished = datetime.fromtimestamp((run / "metrics.jsonl").stat().st_mtime, tz=UTC)
    page = _template().render(
        run=visible(run.resolve().name),
        folder=visible(str(run)),
        date=f"{finished:%d %B %Y, %H:%M} UTC",
        config=config,
        cards=_cards(config, history),
        notes=history.notes,
        layers=list(history.layers),
        dense=not history.layers and not (seen and seen.counts),
        units=_units(config),
        is_text=config.get("task", "language") == "language",
        panels=seen.panels if seen else (),
        any_dropped=any(bool((layer.dropped.nan_to_num() > 0).any()) for layer in history.layers.values()),
        observed=seen,
        information=_information(seen),
        domains=_sample_names(seen.samples) if seen else [],
        sample_layers=samples["layers"],
        hues=plots.HUES,
        data=_script_json({"figures": _figures(history, seen, _units(config)), "samples": samples}),
        plotly=plots.library(),
    )
    target, partial = run / "report.html", run / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def _template() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected jinja2 for the report, got: {error}; run: pip install 'mixtura[train,plots]'"
        ) from None
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2")


def _script_json(value: Any) -> str:
    """JSON for a <script> element: ASCII only, and without the characters that could end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _units(config: Mapping[str, Any]) -> dict[str, str]:
    """The words for what the run counts, as the task gave them."""
    given = config.get("units") or {}
    return {name: str(given.get(name, name)) for name in ("loss", "items", "group")}


def _cards(config: Mapping[str, Any], history: History) -> list[Card]:
    units = _units(config)
    cards = []
    losses = [loss for loss in _mean_validation(history) if math.isfinite(loss)]
    if losses:
        last, best = losses[-1], min(losses)
        cards.append(Card("Validation loss", f"{last:.3f}", f"{units['loss']}; best {best:.3f}"))
        if "nats" in units["loss"]:
            bits, least = last / math.log(2), best / math.log(2)
            cards.append(
                Card("In bits", f"{bits:.3f}", f"{units['loss'].replace('nats', 'bits', 1)}; best {least:.3f}")
            )
    for name, values in history.scores.items():
        if reached := [value for value in values if math.isfinite(value)]:
            cards.append(Card(name, f"{reached[-1]:.4g}", f"on held-out data; best {max(reached):.4g}"))
    parameters = config.get("parameters") or {}
    total, active = parameters.get("total"), parameters.get("active")
    if isinstance(total, int) and isinstance(active, int) and total > 0:
        cards.append(Card("Parameters", _amount(total), f"{_amount(active)} active at a time ({active / total:.0%})"))
    known = [items for items in history.items if math.isfinite(items)]
    if known:
        cards.append(Card(f"Training {units['items']}", _amount(known[-1]), f"in {history.step[-1]:,} steps"))
    seconds = [second for second in history.seconds if math.isfinite(second)]
    speeds = [speed for speed in history.speed if math.isfinite(speed)]
    if seconds:
        cards.append(Card("Training time", _duration(seconds[-1]), "evaluation not counted"))
    if speeds:
        cards.append(
            Card(f"{units['items'].capitalize()} per second", _amount(median(speeds)), "median over the steps")
        )
    return cards + _layer_cards(history)


def _layer_cards(history: History) -> list[Card]:
    """Imbalance of the worst layer and the dropped share, over the last tenth of the run."""
    peaks = {name: _late(layer.imbalance) for name, layer in history.layers.items()}
    peaks = {name: peak for name, peak in peaks.items() if math.isfinite(peak)}
    dropped = mean([_late(layer.dropped) for layer in history.layers.values()])
    cards = []
    if peaks:
        worst = max(peaks, key=peaks.__getitem__)
        cards.append(
            Card("Final imbalance", f"{peaks[worst]:.2f}", f"busiest expert over the mean, {worst}; 1 is even")
        )
    if math.isfinite(dropped):
        cards.append(Card("Dropped", f"{dropped:.2%}", "of the assignments, last tenth of the run"))
    return cards


def _late(values: Tensor) -> float:
    return float(values[-max(1, len(values) // 10) :].nanmean())


def _mean_validation(history: History) -> Sequence[float]:
    if "mean" in history.validation or not history.validation:
        return history.validation.get("mean", ())
    return [mean(losses) for losses in zip(*history.validation.values(), strict=True)]


def _figures(history: History, seen: Observations | None, units: Mapping[str, str]) -> dict[str, list[Figure]]:
    """Plain figures by section; the ones with one figure per layer are in the order of the layers."""
    layers = history.layers
    figures = {"loss": [_loss(history, units)], "load": _loads(list(layers.values()))}
    steps = {name: layer.step for name, layer in layers.items()}
    experts = {layer.share.shape[1] for layer in layers.values()}
    if layers:
        peak = {name: _numbers(layer.imbalance, 3) for name, layer in layers.items()}
        dropped = {name: _numbers(layer.dropped, 5) for name, layer in layers.items()}
        doubt = {name: _numbers(layer.entropy, 3) for name, layer in layers.items()}
        most = math.log(experts.pop()) if len(experts) == 1 else None
        shown = [
            plots.lines_figure(steps, peak, title="busiest / mean load", level=1, note="even: 1"),
            plots.lines_figure(steps, dropped, title="dropped share", form=".2%"),
            plots.lines_figure(steps, doubt, title="router entropy (nats)", level=most, note="even: ln E"),
        ]
        for name, figure in zip(("imbalance", "dropped", "entropy"), shown, strict=True):
            figures[name] = [plots.figure_data(figure)]
    if seen:
        lifts = [metrics.specialisation(counts) for counts in seen.counts.values()]
        shown = [plots.specialisation_figure(seen.domains, _table(lift, 4)) for lift in lifts]
        figures["specialisation"] = [plots.figure_data(figure) for figure in shown]
        drawn = {f"panel-{i}": panel_figure(panel) for i, panel in enumerate(seen.panels)}
        figures |= {name: [figure] for name, figure in drawn.items() if figure is not None}
    return figures


def _loss(history: History, units: Mapping[str, str]) -> Figure:
    noisy = extremes(history.loss, _CURVE_POINTS)
    smooth = running_median(history.loss, max(1, len(history.loss) // 60))
    calm = even(len(smooth), _CURVE_POINTS)
    limit = min(_CURVE_POINTS, max(100, _ALL_VALIDATION_POINTS // max(1, len(history.validation))))
    shown = even(len(history.evaluated), limit)
    places = [history.evaluated[i] for i in shown]
    validation = [
        _curve(history, name, places, [losses[i] for i in shown]) for name, losses in history.validation.items()
    ]
    raw = _curve(history, "loss", noisy, [history.loss[i] for i in noisy])
    median_curve = _curve(history, "median", calm, [smooth[i] for i in calm])
    words = {"loss": units["loss"], "items": units["items"]}
    return plots.figure_data(plots.loss_figure(raw, median_curve, validation, **words))


def _curve(history: History, name: str, places: Sequence[int], values: Sequence[float]) -> plots.Curve:
    return plots.Curve(
        name=name,
        step=[history.step[i] for i in places],
        seconds=[_number(history.seconds[i], 1) for i in places],
        items=[_number(history.items[i], 0) for i in places],
        value=[_number(value, 4) for value in values],
    )


def _loads(layers: Sequence[LayerHistory]) -> list[Figure]:
    limit = min(_HEAT_COLUMNS, max(60, _ALL_HEAT_CELLS // max(1, sum(layer.share.shape[1] for layer in layers))))
    figures = []
    for layer in layers:
        steps, share = columns(layer.step, layer.share, limit)
        figures.append(plots.figure_data(plots.load_figure(steps, _table(share * share.shape[0], 2))))
    return figures


def _information(seen: Observations | None) -> list[dict[str, Any]]:
    """How much each layer's experts tell about the domain, and the strongest preference of one expert."""
    rows = []
    for name, counts in (seen.counts if seen else {}).items():
        lift = metrics.specialisation(counts).nan_to_num(0.0)
        domain, expert = divmod(int(lift.argmax()), lift.shape[1])
        times = float(lift[domain, expert])
        rows.append(
            {
                "layer": name,
                "nats": f"{metrics.mutual_information(counts):.3f}",
                "share": f"{metrics.normalised_mutual_information(counts):.1%}",
                "strongest": f"expert {expert}: {times:.2g} times as much " if times >= 1.05 else "",
                "domain": seen.domains[domain] if seen else "",
                "dead": int((torch.tensor(counts).sum(0) == 0).sum()),
            }
        )
    return rows


def _sample_names(samples: Sequence[Sample]) -> list[str]:
    """The domain of each sample, numbered where a domain has several."""
    domains = [sample.domain for sample in samples]
    return [
        domain if domains.count(domain) == 1 else f"{domain} ({domains[: i + 1].count(domain)})"
        for i, domain in enumerate(domains)
    ]


def _samples(seen: Observations | None) -> dict[str, Any]:
    """Samples for the page's script: pieces, and one list of experts for each layer in the order of `layers`."""
    if seen is None or not seen.samples:
        return {"layers": [], "experts": [], "texts": []}
    layers = list(seen.samples[0].experts)
    limit = min(_CURVE_POINTS, max(50, _ALL_SAMPLE_POINTS // max(1, len(layers) * len(seen.samples))))
    experts = {
        name: max(
            [len(seen.counts[name][0]) if name in seen.counts else 1]
            + [1 + max(sample.experts[name], default=0) for sample in seen.samples]
        )
        for name in layers
    }
    texts = [
        {"pieces": list(sample.pieces[:limit]), "experts": [list(sample.experts[name][:limit]) for name in layers]}
        for sample in seen.samples
    ]
    return {"layers": layers, "experts": list(experts.values()), "texts": texts}


def _number(value: float, digits: int) -> float | None:
    if not math.isfinite(value):
        return None
    return round(value, digits) if digits else round(value)


def _numbers(values: Tensor, digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values.tolist()]


def _table(values: Tensor, digits: int) -> list[list[float | None]]:
    return [_numbers(row, digits) for row in values]


def _amount(value: float) -> str:
    """A number with three digits and a letter for its thousands."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.{max(0, 2 - int(math.log10(value / size)))}f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"
