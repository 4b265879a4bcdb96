"""The numbers and tables of a benchmark, against what is worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from upop.report import render
from upop.report.bench import models_table, notes, timings_table

from .bench_samples import benchmark, model, timing


def rows(text: str) -> list[list[str]]:
    """Cells of each row of a table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_ratios() -> None:
    made = benchmark()
    assert [made.flops_ratio(name) for name in ("dense", "cut", "smaller")] == [None, 2, 4]
    assert [made.speed_up(one) for one in made.timings] == [None, 1.6, 2, None, 2, 3.2]
    assert [made.realised(one) for one in made.timings] == [None, 0.8, 0.5, None, 1, 0.8]
    alone = benchmark(versus=None)
    assert {alone.flops_ratio("cut"), *map(alone.speed_up, alone.timings), *map(alone.realised, alone.timings)} == {
        None
    }


def test_tables() -> None:
    made = benchmark()
    assert rows(render(models_table(made))) == [
        ["dense", "2.00 M", "4.00 M", "-", "8.00 MB", "8.00 MB"],
        ["cut", "1.00 M", "2.00 M", "2.00x", "4.00 MB", "4.00 MB"],
        ["smaller", "500.0 K", "1.00 M", "4.00x", "2.00 MB", "2.00 MB"],
    ]
    assert rows(render(timings_table(made))) == [
        ["batch 1", "", "", "", "", "", ""],
        ["dense", "40.0", "50.0", "25.0", "5.00 MB", "baseline", "-"],
        ["cut", "25.0", "31.2", "40.0", "5.00 MB", "1.60x", "80 %"],
        ["smaller", "20.0", "25.0", "50.0", "5.00 MB", "2.00x", "50 %"],
        ["batch 16", "", "", "", "", "", ""],
        ["dense", "400", "500", "40.0", "5.00 MB", "baseline", "-"],
        ["cut", "200", "250", "80.0", "5.00 MB", "2.00x", "100 %"],
        ["smaller", "125", "156", "128", "5.00 MB", "3.20x", "80 %"],
    ]


def test_without_a_baseline_nothing_is_compared() -> None:
    made = benchmark(versus=None)
    assert {len(row) for row in rows(render(timings_table(made)))} == {5}
    assert {row[3] for row in rows(render(models_table(made)))} == {"-"}
    assert not any("faster" in note for note in notes(made))


def test_names_give_way_and_numbers_do_not() -> None:
    long = "a-model-with-a-name-that-nobody-wants-to-type-twice/compressed"
    made = benchmark(models=[model(long, 9)], timings=[timing(long, 1, 12_345.6)], versus=None)
    text = render(timings_table(made), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(row[0] for row in rows(text)) == f"batch 1{long}"
    assert rows(text)[1][1:] == ["12,346", "15,432", "0.08", "5.00 MB"]
    assert "…" not in text


def test_notes_say_how_far_to_trust_it() -> None:
    assert notes(benchmark()) == [
        "A Processor, 2 threads, fp32: a forward pass of random input_ids 77 and pixel_values 3 x 224 x 224",
        "rounds, every model once in each: batch 1: 20, p90 up to 1.25 of p50; batch 16: 12, p90 up to 1.25 of p50",
        "rounds faster than dense (chance: half): batch 1: cut 18 of 20, smaller 20 of 20; "
        "batch 16: cut 12 of 12, smaller 11 of 12",
        "peak memory: weights, inputs and the most that a pass allocates at one time, as torch's allocator counts",
    ]


def test_notes_on_few_rounds_compilation_and_generation() -> None:
    captioning = model("a", 9, "BlipForConditionalGeneration")
    changes = {"models": [captioning], "timings": [timing("a", 1, 2, rounds=5)], "versus": None}
    first, *others = notes(benchmark(compiled=True, threads=None, dtype="bf16", **changes))
    assert first.startswith("A Processor, bf16, torch.compile: ")
    assert others[0].endswith("; fewer than 10 say little of p90, more seconds give more")
    assert "first pass, which compiles and is no part of the latency: batch 1: a 1.5 s" in others
    assert "no text is generated: the forward pass of a reads one that is given" in others


def test_everything_is_in_the_json() -> None:
    made = benchmark()
    read = json.loads(json.dumps(made.to_dict()))
    assert read["format"] == 1
    assert (read["device"], read["threads"], read["dtype"], read["compiled"]) == ("A Processor", 2, "fp32", False)
    assert (read["versus"], read["seconds"], read["libraries"]) == ("dense", 10.0, {"torch": "2.15.0"})
    assert read["inputs"] == {"input_ids": [77], "pixel_values": [3, 224, 224]}
    assert [one["flops"] for one in read["models"]] == [4_000_000, 2_000_000, 1_000_000]
    assert read["models"][0]["source"] == "models/dense"
    last = read["timings"][-1]
    assert (last["model"], last["batch_size"], last["latency_ms"], last["rounds_faster"]) == ("smaller", 16, 125, 11)
    assert (last["speed_up"], last["flops_ratio"], last["realised"]) == (3.2, 4, 0.8)
    assert read["timings"][0]["speed_up"] is None


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread,"), (8, "8 threads,")])
def test_threads(threads: int, said: str) -> None:
    assert said in replace(benchmark(), threads=threads).conditions()
