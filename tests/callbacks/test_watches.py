"""A loss that explodes and modalities that vanish, against rules restated by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests import tiny
from tests.cli.failing import fails
from tests.recipes import recipe, write
from upop.callbacks import Guards, SearchWatch
from upop.callbacks.fractions import removed_fractions
from upop.callbacks.target import Target
from upop.callbacks.watches import Explosion, part_of, remedy, vanishing
from upop.cli import main
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites


def judged(losses: list[float], interval: int = 10, factor: float = 3.0) -> list[int]:
    """How many means in a row exceed the bound after each update."""
    explosion, found = Explosion(factor), []
    for number, loss in enumerate(losses, start=1):
        explosion.judge(number * interval, loss)
        found.append(explosion.above)
    return found


def test_a_loss_has_exploded_above_a_multiple_of_the_best_and_one() -> None:
    assert judged([1.0, 0.5, 4.4, 4.6, 4.6, 4.4, 4.6]) == [0, 0, 0, 1, 2, 0, 1]
    assert judged([0.001, 0.01, 0.1, 1.0, 2.9]) == [0] * 5, "a thousandfold, and still not much of a loss"
    assert judged([math.log(256), 0.3, 1.0, 2.0, 3.5]) == [0] * 5, "back to what it was before training"


def test_means_are_over_ten_steps_at_least() -> None:
    assert judged([1.0] * 10 + [30.0] + [1.0] * 9, interval=1) == [0] * 20, "one bad batch in ten"
    assert judged([1.0] * 10 + [30.0] * 20, interval=1) == [0] * 19 + [1] * 10 + [2]
    explosion = Explosion(3.0)
    assert [explosion.judge(step, 2.0) for step in (4, 8, 12, 30)] == [False, False, True, True]
    assert (explosion.mean, explosion.best) == (2.0, 2.0)


def test_noise_and_a_gentle_rise_raise_no_alarm() -> None:
    draw = random.Random(0)
    for start in (0.02, 0.7, 2.0, 6.0):
        rising = [start * (1 + number / 100) * draw.lognormvariate(0, 0.15) for number in range(100)]
        assert max(judged(rising)) < 2


def target(name: str = "clip", units: tuple[Any, ...] = ("head_dim", "neuron"), **changes: Any) -> Target:
    settings = {"removed": 0.5, "of": "params", "scope": "prunable", "multiple_of": None, "floor": None}
    settings |= {"ceiling": None, "allocation": "unified", "fractions": None, "tolerance": 0.05}
    made = Target(**(settings | changes))
    model = tiny.build(name)
    sites = find_sites(model, units)
    made.bind(sites, CostModel(sites, measure(model, sites, example_inputs(model))), "cpu")
    return made


def gone(made: Target, kept: dict[str, int]) -> list[tuple[str, float]]:
    """The parts that vanish, and what they keep."""
    removed = removed_fractions(made.cost.shares(kept))
    return [(one.part, round(one.kept, 3)) for one in vanishing(removed, "params", 0.055, made.sites, kept)]


def keeping(made: Target, part: str, units: int) -> dict[str, int]:
    """So many units at each site of a part, all elsewhere."""
    inside = {site.name for site in part_of(part, made.sites)}
    return {site.name: units if site.name in inside else site.units for site in made.sites}


def test_parts_are_what_their_names_say() -> None:
    sites = target("blip_vqa").sites
    for part, expected in (
        ("fusion", {site.name for site in sites if "crossattention" in site.name}),
        ("text/neuron", {site.name for site in sites if "text_" in site.name and site.kind == "neuron"}),
    ):
        assert {site.name for site in part_of(part, sites)} == expected


def test_a_modality_vanishes_where_others_keep_more() -> None:
    made = target()
    assert gone(made, keeping(made, "vision", 48)) == []
    head_dim, neuron = 4 * (3 * (32 + 1) + 32), 32 + 1 + 32  # parameters of one
    bare = round((head_dim + neuron) / (8 * head_dim + 48 * neuron), 3)
    assert gone(made, keeping(made, "vision", 1)) == [("vision", bare)], "one unit at each site, over 5 % though it is"
    assert gone(made, {site.name: 1 for site in made.sites}) == [], "all alike"
    assert gone(made, keeping(made, "text/neuron", 2)) == [("text/neuron", 0.05)]
    assert gone(made, keeping(made, "text/neuron", 3)) == []
    alone = target("vit")
    assert gone(alone, keeping(alone, "vision/neuron", 2)) == [("vision/neuron", 0.042)]


def chosen(made: Target, part: str) -> dict[str, int]:
    """What a search keeps that holds the units of a part for the worst."""
    worst = {site.name for site in part_of(part, made.sites)}
    ranked = {
        site.name: torch.arange(site.units, dtype=torch.float64) - (1000 if site.name in worst else 0)
        for site in made.sites
    }
    return {name: len(units) for name, units in made.select(ranked, 1.0).items()}


@pytest.mark.parametrize(
    ("name", "part", "units"),
    [
        ("clip", "vision", ("head_dim", "neuron")),
        ("clip", "text", ("head_dim", "neuron")),
        ("clip", "vision/neuron", ("head_dim", "neuron")),
        ("clip", "text/head+head_dim", ("head", "head_dim", "neuron")),
        ("blip_vqa", "fusion", ("head_dim", "neuron")),
        ("blip_vqa", "text/head_dim", ("head_dim", "neuron")),
        ("blip_nlvr", "text/neuron", ("head_dim", "neuron")),
    ],
)
def test_the_ceiling_that_is_named_prevents_it(name: str, part: str, units: tuple[Any, ...]) -> None:
    made = target(name, units, removed=0.6)
    kept = chosen(made, part)
    found = {one for one, _ in gone(made, kept)}
    assert part in found or part.partition("/")[0] in found
    share = 1 - removed_fractions(made.cost.shares(kept))[f"removed/params/{part}"]
    text = remedy(part, share, 0.05, made)
    ceiling = yaml.safe_load(text.removesuffix(" prevents it"))["search.ceiling"]
    again = target(name, units, removed=0.6, ceiling=ceiling)
    assert part not in {one for one, _ in gone(again, chosen(again, part))}


def test_ceilings_that_are_there_stay_and_what_cannot_be_is_not_advised() -> None:
    made = target(ceiling={"text": 0.8})
    assert json.loads(remedy("vision", 0.02, 0.05, made).split(": ", 1)[1].removesuffix(" prevents it")) == {
        "text": 0.8,
        "vision": 0.9,
    }
    hopeless = target(removed=None, allocation="per_modality", fractions={"vision": 0.92, "text": 0.2}, tolerance=0.01)
    assert remedy("vision", 0.06, 0.05, hopeless) == (
        "no ceiling on it leaves the budget within reach; lower search.removed, search.floor or search.fractions"
    )


class Fake:
    """A search that has noted what it is told, for a watch to read."""

    def __init__(self, made: Target) -> None:
        self.target, self.history, self.plan, self.finished = made, [], None, False

    def note(self, loss: float, kept: dict[str, int]) -> None:
        step = 10.0 * (len(self.history) + 1)
        self.plan = SimpleNamespace(kept=lambda: kept)
        self.history.append({"step": step, "loss": loss, **removed_fractions(self.target.cost.shares(kept))})


def watched(guards: Guards, losses: list[float], kept: list[dict[str, int]] | None = None) -> SearchWatch:
    made = target()
    fake: Any = Fake(made)
    watch = SearchWatch(guards, fake)
    whole = {site.name: site.units for site in made.sites}
    for number, loss in enumerate(losses):
        fake.note(loss, kept[number] if kept else whole)
        watch.on_train_batch_end(None)  # type: ignore[arg-type]  # it looks at the search only
        watch.on_train_batch_end(None)  # type: ignore[arg-type]  # a batch without an update
    return watch


def test_an_exploded_loss_is_said_once_and_ends_the_run_where_asked_to() -> None:
    with pytest.warns(
        UserWarning, match=r"search: the loss has exploded: at step 40 its mean is 9, at its best it"
    ) as told:
        watched(Guards(), [1.0, 1.0, 9.0, 9.0, 9.0, 1.0, 9.0, 9.0])
    assert len(told) == 1
    assert "was 1; lower search.lr, raise search.warmup_steps, or fade the units over more search.epochs" in str(
        told[0].message
    )
    message = (
        r"search: the loss has exploded and stays so for 3 updates \(guards.stop_exploded\): at step 50 its mean is 9, "
        r"at its best it was 1; lower search.lr, .*, in another run_dir"
    )
    with pytest.warns(UserWarning, match="exploded"), pytest.raises(ValueError, match=message):
        watched(Guards(stop_exploded=3), [1.0, 1.0, 9.0, 9.0, 9.0])


def test_a_vanishing_modality_is_said_once_with_its_ceiling() -> None:
    made = target()
    gone_now, whole = keeping(made, "vision", 1), keeping(made, "vision", 48)
    with pytest.warns(
        UserWarning, match="search: after step 20 the selection keeps 8.1 % of the prunable params"
    ) as told:
        watched(Guards(), [1.0] * 4, [whole, gone_now, whole, gone_now])
    assert [str(one.message).partition("params ")[2] for one in told] == [
        'of vision, while another part keeps 100.0 %; search.ceiling: {"vision": 0.83} prevents it'
    ]


def test_a_watch_that_does_not_look_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    made = target()
    watched(Guards(explode=0, vanish=0), [1.0, 99.0, 99.0, 99.0], [keeping(made, "vision", 1)] * 4)
    assert not recwarn.list


def test_a_resumed_watch_knows_what_it_has_seen_and_said(recwarn: pytest.WarningsRecorder) -> None:
    losses = [1.0, 9.0, 9.0, 9.0]
    first = watched(Guards(), losses)
    assert len(recwarn) == 1
    state = first.state_dict()
    second = SearchWatch(Guards(stop_exploded=4), first._search)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.on_train_batch_end(None)  # type: ignore[arg-type]
    assert len(recwarn) == 1
    whole = {site.name: site.units for site in first._search.target.sites}
    second._search.note(9.0, whole)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="stays so for 4 updates"):
        second.on_train_batch_end(None)  # type: ignore[arg-type]


def test_a_search_that_takes_a_modality_away_is_warned_of_and_told_so_at_the_end(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config["search"] |= {"floor": {"vision": 0.88}, "tolerance": 0.05}
    config["guards"] = {"vanish": 0.15}
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="the selection keeps") as told:
        main(["search", "--config", str(write(config, tmp_path / "config.yaml"))])
    lines = [str(one.message) for one in told if "selection keeps" in str(one.message)]
    lines += [one for one in caplog.messages if one.startswith("the plan keeps")]
    assert len(lines) == 2
    for line in lines:
        assert "% of the prunable params of vision, while another part keeps" in line
        assert line.endswith("lower search.removed, search.floor or search.fractions")


def test_the_guards_are_a_group_of_the_recipe(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["guards"] = {"stop_after": 7, "vanish": 0.02}
    assert recipe(config, tmp_path / "config.yaml").guards == Guards(stop_after=7, vanish=0.02)
    config["guards"] = {"stop_aftr": 7}
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("Group 'guards' does not accept option 'stop_aftr'; did you mean 'stop_after'?")
    config["guards"] = {"vanish": 3}
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert "guards.vanish is 3" in line
