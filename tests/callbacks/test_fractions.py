"""What a search logs, by hand."""

from __future__ import annotations

from dataclasses import replace

from upop.callbacks.fractions import removed_fractions
from upop.cost import Share

ROWS = [
    Share("vision", "head x head_dim", 2, 20, 10, 100, 50, 1000, 250),
    Share("vision", "neuron", 1, 8, 6, 300, 75, 1000, 250),
    Share("text", "neuron", 1, 8, 8, 100, 0, 0, 0),
]


def test_fractions_in_all_per_modality_and_per_kind() -> None:
    assert removed_fractions(ROWS) == {
        "removed/params": 125 / 500,
        "removed/params/vision": 125 / 400,
        "removed/params/vision/head+head_dim": 0.5,
        "removed/params/vision/neuron": 0.25,
        "removed/params/text": 0.0,
        "removed/params/text/neuron": 0.0,
        "removed/flops": 0.25,
        "removed/flops/vision": 0.25,
        "removed/flops/vision/head+head_dim": 0.25,
        "removed/flops/vision/neuron": 0.25,
        "removed/flops/text": 0.0,
        "removed/flops/text/neuron": 0.0,
    }


def test_latency_counts_where_it_was_measured() -> None:
    times = zip(ROWS, (40, 60, 0), (10, 40, 0), strict=True)
    found = removed_fractions([replace(row, latency=whole, latency_removed=gone) for row, whole, gone in times])
    assert found["removed/latency"] == found["removed/latency/vision"] == 0.5
    assert found["removed/latency/vision/head+head_dim"] == 0.25
    assert found["removed/latency/text"] == 0.0
    assert found["removed/params"] == 0.25
