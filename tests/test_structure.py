import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.plans import random_plan
from upop.families import find_sites
from upop.structure import KINDS, Cut, Layer, Plan, Site, fingerprint


def site(name="text.0.mlp.neuron", units=4, kind="neuron", depth=0):
    layer = Layer(f"{name}.up", 3, units, True, "text")
    return Site(name, kind, "text", depth, (Cut(layer, "out", (units,), 0),))


SITES = [site(), site("text.1.mlp.neuron", 5), site("text.1.attention.head_dim", 3, "head_dim")]
NAME = SITES[0].name


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
@settings(max_examples=30, deadline=None)
def test_positions_are_the_indices_of_the_view(view, data):
    dim = data.draw(st.integers(0, len(view) - 1))
    layer = Layer("x", math.prod(view), math.prod(view), True, "text")
    cut = Cut(layer, data.draw(st.sampled_from(["out", "in"])), tuple(view), dim)
    rows = {unit: [] for unit in range(view[dim])}
    for position in range(math.prod(view)):  # row-major, by division with remainder
        rows[position // math.prod(view[dim + 1 :]) % view[dim]].append(position)
    assert cut.positions().tolist() == list(rows.values())
    assert cut.units == view[dim]


def test_a_side_counts_its_own_features():
    layer = Layer("x", in_features=4, out_features=6, bias=True, tokens="text")
    assert Cut(layer, "in", (4,), 0).positions().flatten().tolist() == [0, 1, 2, 3]
    assert Cut(layer, "out", (2, 3), 0).positions().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_site_names_its_block():
    assert SITES[2].block == "text.1.attention"
    assert SITES[2].units == 3


@pytest.mark.parametrize("name", tiny.MODELS)
def test_fingerprint_is_of_the_architecture(name):
    one, other = (find_sites(tiny.build(name, seed), KINDS) for seed in (0, 1))
    assert fingerprint(one) == fingerprint(other) == fingerprint(reversed(one))
    assert len(fingerprint(one)) == 16
    assert int(fingerprint(one), 16) >= 0
    kinds = {fingerprint(find_sites(tiny.build(name), kinds)) for kinds in [("head",), ("neuron",), KINDS]}
    assert len(kinds) == 3


def test_fingerprints_of_different_architectures_differ():
    names = [name for name in tiny.MODELS if name != "deit"]  # its layers are named and sized as those of the ViT
    assert len({fingerprint(find_sites(tiny.build(name), KINDS)) for name in names}) == len(names)
    assert fingerprint([site(units=4)]) != fingerprint([site(units=5)])
    assert fingerprint([site(depth=0)]) == fingerprint([site(depth=1)])


def test_round_trip(tmp_path):
    sites = find_sites(tiny.build("clip"), KINDS)
    plan = Plan.of(random_plan(sites, 0).keep, sites, {"budget": 0.5, "policy": "unified", "list": [1, None]})
    plan.save(tmp_path / "deep" / "plan.json")
    assert Plan.load(tmp_path / "deep" / "plan.json") == plan
    assert Plan.load(str(tmp_path / "deep" / "plan.json")) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_file_is_for_people(tmp_path):
    plan = Plan.of({NAME: [0, 3], SITES[1].name: [1]}, SITES, {"policy": "unified"})
    plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == (
        "{\n"
        '  "format": 1,\n'
        f'  "model": "{fingerprint(SITES)}",\n'
        '  "facts": {\n'
        '    "policy": "unified"\n'
        "  },\n"
        '  "units": {\n'
        f'    "{NAME}": 4,\n'
        f'    "{SITES[1].name}": 5\n'
        "  },\n"
        '  "keep": {\n'
        f'    "{NAME}": [0, 3],\n'
        f'    "{SITES[1].name}": [1]\n'
        "  }\n"
        "}\n"
    )


def test_empty_plan_round_trip(tmp_path):
    plan = Plan.of({}, SITES)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.kinds() == []


def test_views_of_a_plan():
    plan = Plan.of({SITES[2].name: torch.tensor([0, 2]), NAME: range(3)}, SITES)
    assert plan.keep == {SITES[2].name: (0, 2), NAME: (0, 1, 2)}
    assert plan.kept() == {SITES[2].name: 2, NAME: 3}
    assert plan.units == {SITES[2].name: 3, NAME: 4}
    assert plan.kinds() == ["head_dim", "neuron"]
    assert Plan.whole(SITES).kept() == {site.name: site.units for site in SITES}


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        (
            {"text.7.mlp.neuron": [0]},
            r"plan names site 'text\.7\.mlp\.neuron', but this model has \['text\.0\.mlp\.neur",
        ),
        ({"silly": [0]}, "; was it made for this model"),
        ({NAME: []}, rf"plan keeps 0 of 4 units at site '{NAME}'; keep at least 1"),
        ({NAME: [1, 1]}, rf"plan repeats or misorders units at site '{NAME}'; list each unit once, ascending"),
        ({NAME: [2, 1]}, "plan repeats or misorders units"),
        ({NAME: [0, 4]}, rf"plan keeps unit 4 at site '{NAME}', which has units 0 to 3"),
        ({NAME: [-1, 0]}, rf"plan keeps unit -1 at site '{NAME}', which has units 0 to 3"),
    ],
)
def test_check_messages(keep, text):
    with pytest.raises(ValueError, match=text):
        Plan.of(keep, SITES)


def test_a_plan_for_other_sizes_is_refused():
    plan = Plan.of({NAME: [0]}, SITES)
    with pytest.raises(ValueError, match=rf"plan was made for 9 units at site '{NAME}', which has 4"):
        Plan(plan.keep, {NAME: 9}, plan.model).check(SITES)


def test_plan_of_another_model_is_refused():
    plan = Plan.of({NAME: [0]}, SITES)
    with pytest.raises(
        ValueError, match=rf"fingerprint is '{plan.model}', this model's is .*\(and unit kinds\) it was s"
    ):
        plan.check(SITES[:2])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "plan format 2; this version reads format 1"),
        ({"format": None}, "plan format None; this version reads format 1"),
        ({"keep": {NAME: "0123"}}, rf"units kept at site '{NAME}' are not a list of whole numbers"),
        ({"keep": {NAME: [0.0]}}, "are not a list of whole numbers"),
        ({"keep": {NAME: [True]}}, "are not a list of whole numbers"),
        ({"keep": [1, 2]}, "'facts', 'units' and 'keep' of a plan are mappings"),
        ({"facts": "none"}, "'facts', 'units' and 'keep' of a plan are mappings"),
        ({"units": {}}, rf"'units' of a plan has no whole number for site '{NAME}'"),
        ({"units": {NAME: "4"}}, rf"'units' of a plan has no whole number for site '{NAME}'"),
    ],
)
def test_broken_plans_are_refused(tmp_path, change, text):
    data = Plan.of({NAME: [0]}, SITES).to_dict() | change
    with pytest.raises(ValueError, match=text):
        Plan.from_dict(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"plan\.json' is not a plan that this version reads: .*{text}"):
        Plan.load(tmp_path / "plan.json")


def test_what_is_no_plan_at_all(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(FileNotFoundError, match=r"no plan at '.*plan\.json'; `upop search` writes one"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError, match="no plan at"):
        Plan.load(tmp_path)
    for content, text in [
        ("half of a {", "is not a plan that this version reads: Expecting value"),
        ("[" * 100_000, "is not a plan that this version reads: maximum recursion depth"),
        ("[1, 2]", "plan format 'list'; this version reads format 1"),
        ("{}", "plan format None"),
        ('{"format": 1}', r"plan lacks \['model', 'facts', 'units', 'keep'\]; was it written by `upop search`"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=text):
            Plan.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a plan that this version reads"):
        Plan.load(path)
