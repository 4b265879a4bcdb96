from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from upop.report.facts import Run, Unfinished
from upop.report.page import page

from .reading import read, tables, values
from .samples import so_far, summary

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
addEventListener("load", () => {
  const sorted = [];
  for (const down of [false, true]) {
    document.querySelector("table thead th:nth-child(4) button").click();
    sorted.push([...document.querySelectorAll("table")[0].tBodies[0].rows].map((row) => row.cells[3].dataset.value));
  }
  const box = (svg) => svg.getBoundingClientRect();
  parent.postMessage(JSON.stringify({
    wide: document.documentElement.scrollWidth,
    window: innerWidth,
    charts: [...document.querySelectorAll("svg")].map((svg) => [box(svg).width, box(svg).height]),
    size: Math.min(...[...document.querySelectorAll("svg text")].map((text) => box(text).height)),
    buttons: document.querySelectorAll("table .copy").length,
    ink: getComputedStyle(document.querySelector("svg text")).fill,
    sorted,
  }), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body>
<script>
addEventListener("message", (message) => { document.body.innerHTML = "<pre>" + message.data + "</pre>"; });
</script>
<iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe></body></html>"""
"""No window of a browser is as narrow as a phone's, but a frame is."""


def runs(*names, **changes):
    return [Run.of(summary(removed=0.4 + 0.1 * number, **changes), name) for number, name in enumerate(names)]


def begun(*states, name="begun", **changes):
    phases = {"search": "done", "retrain": "begun", "summary": "to come"}
    return Run.of(so_far(*states, **changes), name, Unfinished(phases, "upop fit --config 'my runs/x/config.yaml'"))


def sections(root):
    return [heading.text for heading in root.all("h3")]


def test_the_page_is_sound_and_needs_nothing_else():
    html = page(runs("one", "two"))
    root = read(html)
    assert html.startswith("<!DOCTYPE html>")
    (head,) = root.all("head")
    assert [title.text for title in head.all("title")] == ["upop: 2 runs"]
    assert not re.search(r"https?:|//\w|@import|\bsrc=", html)
    targets = {node.attributes["href"] for node in root.nodes() if "href" in node.attributes}
    assert all(target.startswith("#") for target in targets)
    ids = [node.attributes["id"] for node in root.nodes() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets} <= set(ids)
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img"
        named = svg.attributes["aria-labelledby"].split()
        texts = {node.attributes.get("id"): node.text for node in svg.nodes()}
        assert all(texts[name] for name in named)
    assert not root.all("img")
    for made in root.all("table"):
        assert made.all("caption")[0].text
        assert all(cell.attributes["scope"] == "col" for cell in made.all("thead")[0].all("th"))
        assert all(row.all("th")[0].attributes["scope"] == "row" for row in made.all("tbody")[0].all("tr"))
    levels = [int(node.tag[1]) for node in root.nodes() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_its_numbers_are_those_of_the_summary():
    told = summary(metrics=("i2t_r1", "mean", "psnr"))
    found = tables(read(page([Run.of(told, "x")])))
    states = found["dense, cut and retrained"]
    assert [cell.text for cell in states[0]] == ["", "dense", "cut", "retrained", "of dense"]
    names = ["params", "flops", "latency_ms", "samples_per_s", "i2t_r1", "mean", "psnr"]
    for name, row in zip(names, states[1:], strict=True):
        expected = [told["states"][state].get(name, "-") for state in ("dense", "cut", "retrained")]
        assert values(row)[:3] == expected, name
        assert values(row)[3] == pytest.approx(expected[2] / expected[0])
    for site, row in zip(told["sites"], found["units kept at every site"][1:], strict=True):
        exact = [site[key] for key in ("modality", "depth", "kind", "units", "units_kept")]
        assert [row[0].text, *values(row)] == [site["name"], *exact, site["units_kept"] / site["units"]]
    for share, row in zip(told["removed"], found["what is kept and removed, by modality and kind"][1:], strict=True):
        sizes = [
            number
            for size in ("params", "flops")
            for number in (share[size], share[size] - share[f"{size}_removed"], share[f"{size}_removed"] / share[size])
        ]
        assert [row[0].text, *values(row)] == [
            *(share[key] for key in ("modality", "kind", "sites", "units", "units_kept")), *sizes,
        ]  # fmt: skip
    head, *updates = found["updates of the search"]
    keys = [cell.text.replace(" ", "_") for cell in head]
    for told_row, row in zip(told["search"]["history"], updates, strict=True):
        assert float(row[0].attributes["data-value"] or "nan") == told_row["step"]
        assert values(row) == [told_row[key] for key in keys[1:]]


def test_the_headline():
    root = read(page(runs("one")))
    cards = [node.text.replace("\u00a0", " ") for node in root.all("ul")[0].all("li")]
    assert cards == [
        "64.0 % of the parameters 2.58 M before, 1.65 M now",
        "64.0 % of the FLOPs 106.4 M before, 68.1 M now",
        "1.67\u00d7 as fast 277.37 ms before, 165.88 ms now",
        "34.88 mean of the recalls dense 40.00, right after the cut 29.75",
    ]
    lead = root.all("p")[0].text.replace("\u00a0", " ")
    assert lead == (
        "Retrieval on Shapes, from models/shapes: 50.0 % of the prunable parameters removed over 16 search steps by "
        "the policy unified with unified allocation."
    )


def test_several_runs_are_compared():
    made = runs("one", "two", "three")
    root = read(page(made))
    head, *rows = tables(root)["runs compared"]
    assert [row[0].text for row in rows] == ["one", "two", "three"]
    columns = [cell.text for cell in head]
    for run, row in zip(made, rows, strict=True):
        found = dict(zip(columns[1:], values(row), strict=True))
        assert found["parameters"] == run.states["retrained"]["params"]
        assert [found[state] for state in ("dense", "cut", "retrained")] == [40.0, 29.75, 34.875]
        assert found["target"] == run.target
    titles = [svg.all("title")[0].text for svg in root.all("svg")]
    assert titles[:2] == ["mean of the recalls against parameters", "mean of the recalls against FLOPs"]
    assert titles.count("task loss") == 3


def test_another_metric_and_other_tasks():
    titles = [svg.all("title")[0].text for svg in read(page(runs("one", "two"), "i2t_r1")).all("svg")]
    assert titles[0] == "image to text R@1 against parameters"
    mixed = [*runs("one"), *runs("two", task="Captions", metrics=("cider",)), *runs("three", metrics=())]
    titles = [svg.all("title")[0].text for svg in read(page(mixed)).all("svg")]
    assert titles[:4] == [
        f"{metric} against {size}" for metric in ("mean of the recalls", "CIDEr") for size in ("parameters", "FLOPs")
    ]


def test_a_run_that_is_not_finished_says_so_and_how_to_go_on():
    root = read(page([begun("dense", "cut")]))
    (notice,) = [node for node in root.nodes() if node.attributes.get("class") == "notice"]
    assert notice.all("strong")[0].text == "This run is not finished."
    assert [node.text for node in notice.all("li")] == ["search: done", "retrain: begun", "summary: to come"]
    assert [node.text for node in notice.all("code")] == ["upop fit --config 'my runs/x/config.yaml'"]
    assert not [node for node in read(page(runs("x"))).nodes() if node.attributes.get("class") == "notice"]


def test_what_there_is_nothing_of_is_left_out():
    root = read(page([begun("dense", "cut")]))
    assert sections(root) == ["Quality and size", "What is kept", "The search", "How it was made"]
    assert list(tables(root)) == [
        "measured so far", "units kept at every site", "updates of the search", "settings", "files",
    ]  # fmt: skip
    head, params, *_ = tables(root)["measured so far"]
    assert [cell.text for cell in head] == ["", "dense", "cut", "of dense"]
    assert values(params) == [2_581_530, 1_419_842, pytest.approx(0.55, abs=1e-3)]
    assert "upop" not in [row[0].text for row in tables(root)["settings"]]
    cards = [node.text.replace("\u00a0", " ") for node in root.all("ul")[1].all("li")]
    assert cards == [
        "55.0 % of the parameters 2.58 M before, 1.42 M now",
        "55.0 % of the FLOPs 106.4 M before, 58.5 M now",
        "29.75 mean of the recalls, right after the cut dense 40.00",
    ]
    root = read(page([begun("dense", search=False)]))
    assert sections(root) == ["Quality and size", "How it was made"]
    assert [cell.text for cell in tables(root)["measured so far"][0]] == ["", "dense"]
    assert [node.text for node in root.all("ul")[1].all("li")] == ["40.00 mean of the recalls, dense before the search"]
    root = read(page([begun(search=False)]))
    assert sections(root) == ["How it was made"]
    assert len(root.all("ul")) == 1
    assert not root.all("svg")


def test_what_is_to_be_done():
    told = so_far(search=False)
    lead = "Retrieval on Shapes, from models/shapes: {} by the policy unified with unified allocation."
    for target, what in ((0.5, "50.0 % of the prunable parameters are to go"), (None, "parameters are to go")):
        told["search"]["target"] = target
        root = read(page([Run.of(told, "x", Unfinished({}, ""))]))
        assert lead.format(what) in [node.text.replace("\u00a0", " ") for node in root.all("p")]


def test_a_budget_of_latency_shows_what_was_foretold_and_what_was_measured():
    told = summary() | {
        "latency": {
            "predicted": {"dense_ms": 200.0, "compressed_ms": 120.0, "removed": 0.4},
            "measured": {"dense_ms": 210.0, "compressed_ms": 130.2, "removed": 0.38},
        }
    }
    found = tables(read(page([Run.of(told, "x")])))["the latency budget"]
    assert [cell.text for cell in found[0]] == ["", "dense, ms", "compressed, ms", "removed"]
    assert [[cell.text.replace("\u00a0", " ") for cell in row] for row in found[1:]] == [
        ["predicted", "200.00", "120.00", "40.0 %"],
        ["measured", "210.00", "130.20", "38.0 %"],
    ]
    assert "the latency budget" not in tables(read(page([Run.of(summary(), "x")])))
    del told["latency"]["measured"]
    with pytest.raises(ValueError, match="it lacks 'measured'"):
        Run.of(told, "x")


def test_an_unfinished_run_is_compared_as_far_as_it_went():
    made = [*runs("one"), begun("dense", "cut", name="two"), begun(name="three", search=False)]
    root = read(page(made))
    head, *rows = tables(root)["runs compared"]
    columns = [cell.text for cell in head]
    assert [row[0].text for row in rows] == ["one", "two (not finished)", "three (not finished)"]
    two, three = (dict(zip(columns[1:], values(row), strict=True)) for row in rows[1:])
    assert [two[key] for key in ("dense", "cut", "retrained", "parameters")] == [40.0, 29.75, "-", 1_419_842]
    assert two["latency, ms"] == two["latency, of dense"] == "-"
    assert {three[key] for key in columns[2:] if key not in ("target", "policy", "seed", "task")} == {"-"}
    notes = [node.text for node in root.all("p") if node.attributes.get("class") == "note"]
    assert notes[0] == (
        "Not finished: two (search: done; retrain: begun; summary: to come), three (search: done; retrain: begun; "
        "summary: to come). What is not known yet is a dash, and no curve shows it."
    )
    curves = [node.text for node in root.all("desc") if node.text.startswith("Hollow")]
    assert len(curves) == 2
    assert not [text for text in curves if "two" in text]
    root = read(page([begun(name="one"), begun("dense", name="two")], "mean"))
    assert not [node.text for node in root.all("desc") if node.text.startswith("Hollow")]


def test_what_an_unfinished_run_says_is_text():
    evil = "<b>\"'&$x</script><script>alert(1)</script>"
    told = so_far("dense", "cut", metrics=(evil,))
    told["recipe"] = dict.fromkeys(told["recipe"], evil)
    told["search"]["facts"] |= {"policy": evil, evil: evil}
    run = Run.of(told, evil, Unfinished({evil: evil}, evil))
    root = read(page([run, *runs("<i>")]))
    assert not {"b", "i"} & {node.tag for node in root.nodes()}
    assert len(root.all("script")) == 1
    assert [node.text for node in root.all("code")] == [evil]
    assert f"{evil}: {evil}" in [node.text for node in root.all("li")]


def test_what_files_say_is_text():
    evil = "<b>\"'&$x</script><script>alert(1)</script>"
    told = summary(metrics=(evil,))
    told["recipe"] = dict.fromkeys(told["recipe"], evil)
    told["search"]["facts"] |= {"policy": evil, evil: evil}
    told["files"] = {evil: evil}
    told["speed"]["dense"]["device"] = evil
    told["sites"][0] |= {"name": f"{evil}.0.{evil}", "kind": evil, "modality": evil}
    told["removed"][0] |= {"kind": evil, "modality": evil}
    root = read(page([Run.of(told, evil), Run.of(told, "<i>")]))
    tags = {node.tag for node in root.nodes()}
    assert not {"b", "i"} & tags
    assert len(root.all("script")) == 1
    assert [node.text for node in root.all("h2")][1:] == [evil, "<i>"]
    assert evil in [cell.text for cell in root.all("td")]


@pytest.mark.parametrize(
    "evil",
    ['" onload="alert(1)', "a\n|b", "\x00\x1b", "\ud800", "\ufffe", "]]>", "<!--", "&lt;", "${body}", "$x^2$", ""],
)
def test_names_that_no_file_of_text_may_hold(evil):
    told = summary(task=evil, metrics=(f"m{evil}", "mean"), policy=evil, layers=1, updates=2)
    told["recipe"] |= {"data": evil, f"k{evil}": evil}
    told["sites"][0] |= {"name": evil, "kind": evil, "modality": evil}
    seen = "".join("\ufffd" if letter in "\x00\x1b\ud800\ufffe" else letter for letter in evil)
    root = read(page([Run.of(told, evil), *runs("other")]))
    assert not [name for node in root.nodes() for name in node.attributes if name.startswith("on")]
    assert len(root.all("script")) == 1
    titles = [node.text for node in root.all("h2")]
    assert (titles[0], titles[-1]) == ("2 runs compared", "other")
    assert " ".join(titles[1].split()) == " ".join(seen.split())


def test_the_same_runs_make_the_same_page():
    assert page(runs("one", "two")) == page(runs("one", "two"))


def test_its_size():
    html = page(runs("deep", layers=24, updates=200))
    assert len(html) < 600_000
    assert html.isascii()


@pytest.mark.parametrize("names", [[], ["one", "one"]])
def test_refused(names):
    with pytest.raises(ValueError, match=re.escape(f"the runs to report are {names}; give at least one, each with")):
        page(runs(*names))


def test_its_parts_are_in_the_package():
    names = {part.name for part in (files("upop.report") / "assets").iterdir()}
    assert {"page.html", "page.css", "page.js"} <= names


@pytest.mark.skipif(BROWSER is None, reason="no Chromium found in PATH; install it to open the page in a browser")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_draws_it(tmp_path: Path, width: int, dark: bool):
    html = page([*runs("<b>", "two"), begun("dense", "cut", removed=0.3)])
    (tmp_path / "page.html").write_text(html.replace("</body>", PROBE + "</body>"))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    options += [
        "--window-size=1400,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]
    home = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([str(BROWSER), *options], capture_output=True, text=True, timeout=120, check=True, env=home)
    assert "CONSOLE" not in done.stderr
    found = json.loads(read(done.stdout).all("pre")[0].text)
    assert found["window"] == width
    assert found["wide"] <= found["window"], "nothing but tables scrolls sideways"
    assert len(found["charts"]) == len(read(html).all("svg"))
    assert all(width > 200 and height > 40 for width, height in found["charts"])
    assert found["size"] >= 9
    assert found["buttons"] == len(read(html).all("table"))
    assert found["ink"] == ("rgb(232, 234, 237)" if dark else "rgb(28, 30, 33)")
    up, down = found["sorted"]
    assert up == sorted(up, key=float)
    assert down == up[::-1]
