import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.cost import CostModel, measure
from upop.export import save
from upop.export.card import Card
from upop.families import example_inputs, find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_


def card(name="clip", facts=None, **more):
    model = samples.model(name)
    sites = find_sites(model, KINDS)
    cost = CostModel(sites, measure(model, sites, example_inputs(model)))
    plan = random_plan(sites, 1)
    return Card(type(model).__name__, cost, plan, facts=facts or {}, **more)


def rows(text, title):
    """The cells of the table below a title."""
    lines = text.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_numbers_are_those_of_the_models(tmp_path, name):
    model = samples.model(name)
    dense = sum(value.numel() for value in model.parameters())
    sites = find_sites(model, KINDS)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    text = (save(model, samples.processor(name), tmp_path / "out", plan, KINDS) / "README.md").read_text()
    left = sum(value.numel() for value in model.parameters())
    flops = measure(model, [], example_inputs(model)).flops
    sizes = rows(text, "Size")
    assert sizes[2] == ["parameters", f"{dense:,}", f"{left:,}", f"{left / dense:.1%}"]
    assert sizes[3][2] == f"{flops:,}"
    removed = rows(text, "What was removed")[2:]
    assert sum(int(row[4].replace(",", "")) for row in removed) == dense - left
    assert {row[0] for row in removed} == {site.modality for site in sites}
    assert f"with {left:,} parameters, {left / dense:.1%} of the {dense:,} of the dense model" in text


def test_the_same_facts_give_the_same_card():
    facts = {"source": "someone/model", "metrics": {"mean": 12.345}}
    assert card(facts=facts).text() == card(facts=facts).text()


def test_metrics_as_far_as_they_are_known():
    assert "## Quality" not in card().text()
    assert "## Quality" not in card(facts={"metrics": {}}).text()
    only = card(facts={"metrics": {"mean": 12.345, "note": "x"}}).text()
    assert rows(only, "Quality")[2:] == [["mean", "-", "12.35"], ["note", "-", "x"]]
    both = card(facts={"metrics": {"mean": 12.345}, "dense_metrics": {"mean": 1234.5, "other": 1}}).text()
    assert rows(both, "Quality")[2:] == [["mean", "1,234.50", "12.35"], ["other", "1.00", "-"]]


HOSTILE = (
    "<script>alert(1)</script>", "a|b", "a\nb", "a\n\n# b", "| --- |\n", "`", "``` a", "[x](http://evil)", "*a* _b_",
    "&lt;", "\\", "a\\|b", '"', "\x00\x1b\ud800\u2028", "---", "~~a~~", "<!--", "![x](y)", "bleu_4", "",
)  # fmt: skip


def told(text):
    """What a reader of Markdown sees: kinds of blocks, words of each, pieces of code, kinds of everything."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    inline = [token.children for token in tokens if token.type == "inline"]
    words = ["".join(child.content for child in children) for children in inline]
    codes = [child.content for children in inline for child in children if child.type == "code_inline"]
    return [token.type for token in tokens], words, codes, {child.type for children in inline for child in children}


@pytest.fixture(scope="module")
def harmless():
    return card(facts={"metrics": {"name": 1.0, "note": "x"}, "source": "harmless"})


def check_letters(harmless, name):
    """Whatever names say, the card has the same blocks, and a reader sees the names."""
    facts = {"metrics": {f"m{name}": 1.0, "note": f"x{name}"}, "source": f"s{name.replace('/', '')}"}
    blocks, words, codes, kinds = told(dataclasses.replace(harmless, facts=facts).text())
    expected, *_, known = told(harmless.text())
    assert blocks == expected
    assert kinds - {"text_special"} == known
    seen = [
        "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(f"{first}{name}".split()))
        for first in "mx"
    ]
    assert words[-11:-5] == [seen[0], "-", "1.00", "note", "-", seen[1]]
    assert codes[1] == seen[0].replace("/", "").replace("m", "s", 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_letters(harmless, name):
    check_letters(harmless, name)


@settings(max_examples=60, derandomize=True)
@given(st.text(max_size=20))
def test_all_names_are_letters(harmless, name):
    check_letters(harmless, name)


def metadata(text):
    return text.split("---\n")[1].splitlines()


def test_metadata_for_the_hub():
    autos = ["AutoModel", "AutoModelForZeroShotImageClassification"]
    found = metadata(card(facts={"source": "openai/clip"}, autos=autos).text())
    assert found == [
        "license: other",
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "base_model: openai/clip",
        "tags:",
        "- upop",
        "- pruning",
        "- compressed",
    ]
    assert metadata(card("timm_vit").text())[:2] == ["license: other", "library_name: timm"]


def test_a_source_on_the_disk_is_named_but_not_where_it_is(tmp_path, monkeypatch):
    text = card(facts={"source": str(tmp_path / "deep" / "mine")}, autos=["AutoModel"]).text()
    assert "of the dense model `mine`." in text
    assert str(tmp_path) not in text
    assert "base_model" not in text
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in card(facts={"source": "runs/mine"}).text()
    assert "of the dense model. " in card().text()


def code(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_how_to_load():
    trust = '", trust_remote_code=True)'
    plain, ours = code(card(autos=["AutoModel"]).text())
    assert plain.count(trust) == 1
    assert "AutoProcessor.from_pretrained" in plain
    assert "upop.load(" in ours
    assert "AutoProcessor" not in code(card(autos=["AutoModel"], processor=False).text())[0]
    assert code(card(autos=["AutoModel"], trust_processor=True).text())[0].count(trust) == 2
    assert "also by `AutoModelForX`:" in card(autos=["AutoModel", "AutoModelForX"]).text()
    assert "from timm_upop import load" in code(card("timm_vit").text())[0]
    for text in [*code(card(autos=["AutoModel"]).text()), *code(card("timm_vit").text())]:
        compile(text, "card", "exec")


def test_the_code_of_the_card_runs(tmp_path, monkeypatch):
    model = samples.model("clip")
    sites = find_sites(model, KINDS)
    plan = Plan.whole(sites)
    path = save(model, samples.processor("clip"), tmp_path / "out", plan, KINDS)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for text in code((path / "README.md").read_text()):
        scope = {}
        exec(text.replace("path/to/this/directory", str(path)), scope)
        assert type(scope["model"]).__name__ == "CLIPModel"
        assert type(scope["processor"]).__name__ == "CLIPProcessor"
    assert json.loads((path / "config.json").read_text())["architectures"] == ["CLIPModel"]


def test_the_licence_is_left_to_the_user():
    assert "Not chosen yet: `license: other` above is a placeholder." in card().text()
