"""One self-contained HTML file of one or several runs: no network, opens from disk, on a phone and in dark mode.

The frame, the style and the script are the files in ``assets/``. Without the script, which sorts and copies tables,
everything is there to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from math import isfinite
from string import Template
from xml.etree.ElementTree import Element

from upop.report import charts
from upop.report.curve import curve, lines
from upop.report.facts import LAST, Run, check_metric, label, percent, shown
from upop.report.markup import Cell, details, element, table, to_html
from upop.report.tables import CURRENCY, NONE, SIZES, human

ASSETS = "assets"


def page(runs: Sequence[Run], metric: str | None = None) -> str:
    """The page as text; the same for the same runs.

    Args:
        runs: At least one; several are compared first.
        metric: What the headline and the curve show; by default each run's main metric
            (:meth:`~upop.report.facts.Run.main_metric`).

    Raises:
        ValueError: If there is no run, two have one name, or one of them has no such metric.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) != len(names):
        raise ValueError(f"the runs to report are {names}; give at least one, each with its own name")
    if metric is not None:
        check_metric(metric, runs)
    title = f"upop: {names[0]}" if len(runs) == 1 else f"upop: {len(runs)} runs"
    several = [] if len(runs) == 1 else [_comparison(runs, metric)]
    body = [*several, *(_run(f"run-{number}", run, metric) for number, run in enumerate(runs, start=1))]
    folder = files("upop.report") / ASSETS
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=to_html(element("title", title)),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        body="\n".join(map(to_html, body)),
    )


def _comparison(runs: Sequence[Run], metric: str | None) -> Element:
    """All runs in one table, and a curve for each metric that stands for one of them."""
    links = [element("li", element("a", _named(run), href=f"#run-{number}")) for number, run in enumerate(runs, 1)]
    wanted = dict.fromkeys(metric or run.main_metric() for run in runs)
    drawn = [
        curve(f"curve-{number}-{size}", runs, key, size)
        for number, key in enumerate(wanted, start=1)
        if key is not None and lines(runs, key)
        for size in ("params", "flops")
    ]
    head = [
        "run", "no.", "metric", "dense", "cut", LAST, "parameters", "parameters kept", "FLOPs", "FLOPs kept",
        "latency, ms", "latency, of dense", "target", "policy", "seed", "task",
    ]  # fmt: skip
    return element(
        "section",
        element("h2", f"{len(runs)} runs compared"),
        element("nav", element("ol", *links), aria_label="runs"),
        table("runs compared", head, [_compared(*one, metric) for one in enumerate(runs, start=1)]),
        *_missing(runs),
        *([element("div", *drawn, class_="charts")] if drawn else []),
        id="comparison",
    )


def _named(run: Run) -> str:
    return f"{run.name} (not finished)" if run.unfinished else run.name


def _missing(runs: Sequence[Run]) -> Iterator[Element]:
    """What a comparison says of runs that are not finished, where there are any."""
    phases = {run.name: run.unfinished.phases for run in runs if run.unfinished}
    names = (f"{name} ({'; '.join(f'{one}: {what}' for one, what in found.items())})" for name, found in phases.items())
    if phases:
        text = f"Not finished: {', '.join(names)}. What is not known yet is a dash, and no curve shows it."
        yield element("p", text, class_="note")


def _compared(number: int, run: Run, metric: str | None) -> list[Cell | str]:
    key = metric or run.main_metric()
    sizes = [
        cell
        for size in ("params", "flops", "latency_ms")
        for cell in (_fact(size, run.value(run.last, size)), _percent(run.share(size)))
    ]
    values = [_fact(key, run.value(state, key)) if key else Cell(NONE) for state in ("dense", "cut", LAST)]
    words = [str(run.facts.get("policy", NONE)), str(run.recipe.get("seed", NONE)), run.task]
    return [_named(run), _count(number), label(key) if key else NONE, *values, *sizes, _percent(run.target), *words]


def _run(identifier: str, run: Run, metric: str | None) -> Element:
    """Everything about one run; what there is nothing of is left out."""
    cards = list(_cards(run, metric or run.main_metric()))
    return element(
        "section",
        element("h2", run.name),
        *_notice(run),
        element("p", _lead(run)),
        *([element("ul", *cards, class_="cards")] if cards else []),
        *(_quality(identifier, run) if run.states else []),
        *(_kept(identifier, run) if run.sites else []),
        *(_search(identifier, run) if run.history or run.unfinished is None else []),
        element("h3", "How it was made"),
        element("div", _settings(run), _files(run), class_="pair"),
        id=identifier,
    )


def _notice(run: Run) -> Iterator[Element]:
    """That a run is not finished, how far it got, and how to go on."""
    if run.unfinished is not None:
        yield element(
            "div",
            element("p", element("strong", "This run is not finished."), " Shown is what there is so far."),
            element("ul", *(element("li", f"{phase}: {what}") for phase, what in run.unfinished.phases.items())),
            element("p", "Go on, from where it was started, with ", element("code", run.unfinished.go_on)),
            class_="notice", role="note",
        )  # fmt: skip


def _quality(identifier: str, run: Run) -> Iterator[Element]:
    drawn, measured = charts.metrics(f"{identifier}-metrics", run), _measured(run)
    yield element("h3", "Quality, size and speed" if run.speed else "Quality and size")
    yield element("div", _states(run), *([drawn] if drawn is not None else []), class_="pair")
    if measured:
        yield element("p", measured, class_="note")
    if run.latency:
        yield _latency(run)


def _kept(identifier: str, run: Run) -> Iterator[Element]:
    panels = charts.towers(f"{identifier}-kept", run.sites)
    yield element("h3", "What is kept")
    yield element("div", *(_tower(name, drawn) for name, drawn in panels.items()), class_="towers")
    if run.removed:
        yield _removed(run)
    yield details("every site in numbers", _sites(run))


def _search(identifier: str, run: Run) -> Iterator[Element]:
    yield element("h3", "The search")
    yield element("div", *charts.search(f"{identifier}-search", run), class_="charts")
    yield details("every update in numbers", _history(run)) if run.history else element("p", "no update was logged")


def _lead(run: Run) -> str:
    """What was done, or is to be done, in a sentence."""
    facts = run.facts
    steps, of = facts.get("steps"), CURRENCY.get(str(facts.get("of")), "units")
    source = f"{run.task}, from {run.recipe.get('checkpoint', NONE)}: "
    how = f"by the policy {facts.get('policy', NONE)} with {facts.get('allocation', NONE)} allocation."
    if run.unfinished is not None:
        share = "" if run.target is None else f"{percent(run.target)} of the prunable "
        return f"{source}{share}{of} {'go' if 'cut' in run.states else 'are to go'} {how}"
    key = str(facts.get("of")) if facts.get("of") in CURRENCY else "params"
    whole = sum(getattr(share, key) or 0 for share in run.removed)
    gone = sum(getattr(share, f"{key}_removed") or 0 for share in run.removed)
    over = f" over {steps:,} search steps" if isinstance(steps, int) else ""
    return f"{source}{percent(gone / whole if whole else None)} of the prunable {of} removed{over} {how}"


def _cards(run: Run, metric: str | None) -> Iterator[Element]:
    """The headline numbers."""
    for size, name in (("params", "of the parameters"), ("flops", "of the FLOPs")):
        dense, last = (shown(size, run.value(state, size)) for state in ("dense", run.last))
        if (share := run.share(size)) is not None:
            yield _card(percent(share), name, f"{dense} before, {last} now")
    share = run.share("latency_ms")
    if share:
        dense, last = (shown("latency_ms", run.value(state, "latency_ms")) for state in ("dense", LAST))
        yield _card(f"{1 / share:.2f}\u00d7", "as fast", f"{dense} ms before, {last} ms now")
    if metric is None:
        return
    dense, cut, last = (shown(metric, run.value(state, metric)) for state in ("dense", "cut", LAST))
    if LAST in run.states:
        yield _card(last, label(metric), f"dense {dense}, right after the cut {cut}")
    elif cut != NONE:
        yield _card(cut, f"{label(metric)}, right after the cut", f"dense {dense}")
    elif dense != NONE:
        yield _card(dense, f"{label(metric)}, dense", "before the search")


def _card(number: str, name: str, more: str) -> Element:
    return element("li", element("strong", number), " ", element("span", name), " ", element("small", more))


def _states(run: Run) -> Element:
    """Sizes, speed and metrics of each state."""
    seen = list(dict.fromkeys(key for facts in run.states.values() for key in facts))
    keys = [*(key for key in SIZES if key in seen), *(key for key in seen if key not in SIZES)]
    both = {"dense", run.last} <= set(run.states)
    rows: list[list[Cell | str]] = []
    for key in keys:
        share = [_percent(run.share(key))] if both else []
        rows.append([label(key), *(_fact(key, run.value(state, key)) for state in run.states), *share])
    caption = "dense, cut and retrained" if run.unfinished is None else "measured so far"
    return table(caption, ["", *run.states, *(["of dense"] if both else [])], rows)


def _measured(run: Run) -> str:
    """What the sizes are of; nothing where there are none."""
    found = run.speed.get("dense", {})
    if run.unfinished is not None:
        return "FLOPs of one sample." if any("flops" in facts for facts in run.states.values()) else ""
    return (
        f"FLOPs of one sample. Latency of a batch of {found.get('batch_size')} on {found.get('device')}: median of "
        f"{found.get('rounds')}, dense and compressed side by side."
    )


def _latency(run: Run) -> Element:
    """What the table of a latency budget foretold of the cut model, and what it takes."""
    rows: list[list[Cell | str]] = []
    for by, found in run.latency.items():
        times = [Cell(f"{found[f'{model}_ms']:,.2f}", found[f"{model}_ms"]) for model in ("dense", "compressed")]
        rows.append([by, *times, _percent(found["removed"])])
    return table("the latency budget", ["", "dense, ms", "compressed, ms", "removed"], rows)


def _tower(name: str, drawn: Sequence[Element]) -> Element:
    return element("div", element("h4", name), *drawn, class_="tower")


def _removed(run: Run) -> Element:
    sizes = [f"{what}{part}" for what in ("parameters", "FLOPs") for part in ("", " kept", " removed")]
    head = ["modality", "kind", "sites", "units", "units kept", *sizes]
    rows: list[list[Cell | str]] = []
    for share in run.removed:
        row: list[Cell | str] = [share.modality, share.kind, _count(share.sites)]
        row += [_count(share.units), _count(share.units_kept)]
        for whole, gone in ((share.params, share.params_removed), (share.flops, share.flops_removed)):
            row += [_human(whole), _human(whole - gone), _percent(gone / whole if whole else None)]
        rows.append(row)
    return table("what is kept and removed, by modality and kind", head, rows)


def _sites(run: Run) -> Element:
    head = ["site", "modality", "layer", "kind", "units", "kept", "kept, %"]
    rows: list[list[Cell | str]] = [
        [
            site.name, site.modality, _count(site.depth), site.kind, _count(site.units), _count(site.units_kept),
            _percent(site.units_kept / site.units if site.units else None),
        ]
        for site in run.sites
    ]  # fmt: skip
    return table("units kept at every site", head, rows)


def _history(run: Run) -> Element:
    """What each update logged, without the split by kind."""
    seen = dict.fromkeys(key for row in run.history for key in row if key.count("/") <= 2)
    keys = ["step", *(key for key in seen if key != "step")]
    rows = [[_logged(key, row.get(key)) for key in keys] for row in run.history]
    return table("updates of the search", [key.replace("_", " ") for key in keys], rows)


def _logged(key: str, value: float | None) -> Cell:
    if value is None or not isfinite(value):
        return Cell(NONE)
    if key.startswith("removed/"):
        return _percent(value)
    return Cell(f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4f}", value)


def _settings(run: Run) -> Element:
    facts = {key: value for key, value in run.facts.items() if key not in (*CURRENCY, "step")}
    seconds = {f"seconds of {phase}, last attempt": value for phase, value in run.seconds.items() if value is not None}
    version = {"upop": run.version} if run.version else {}
    rows = {**run.recipe, **{f"search: {key}": value for key, value in facts.items()}, **seconds, **version}
    return table(
        "settings", ["setting", "value"], [[key.replace("_", " "), _plain(value)] for key, value in rows.items()]
    )


def _files(run: Run) -> Element:
    return table("files", ["file", "where"], [[what, where] for what, where in run.files.items()])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(part)}" for key, part in value.items()) or NONE
    return ", ".join(map(str, value)) if isinstance(value, list) else NONE if value is None else str(value)


def _fact(key: str, value: float | None) -> Cell:
    return Cell(shown(key, value), value)


def _percent(part: float | None) -> Cell:
    return Cell(percent(part), part)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)


def _human(number: int) -> Cell:
    return Cell(human(number), number)
