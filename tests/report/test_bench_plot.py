"""The picture of a benchmark: what is drawn, read back from the figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from upop.report.bench_plot import BASELINE, OTHER, PROMISED, bench_figure, bench_picture

from .bench_samples import NAMES, benchmark


def test_a_bar_for_every_model_and_batch_size() -> None:
    figure = bench_figure(benchmark())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 16"]
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[40, 25, 20], [400, 200, 125]]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
        assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [BASELINE, OTHER, OTHER]
        top, bottom = axes.patches[0].get_window_extent(), axes.patches[2].get_window_extent()
        assert top.y0 > bottom.y1, "the baseline is on top"


def segments(figure_axes: object, what: str) -> list[list[float]]:
    (lines,) = (
        found
        for found in figure_axes.collections  # type: ignore[attr-defined]
        if isinstance(found, LineCollection) and (found.get_label() == PROMISED) == (what == "promised")
    )
    return [[float(segment[0][0]), float(segment[1][0])] for segment in lines.get_segments()]


def test_whiskers_and_what_the_flops_promise() -> None:
    first, second = bench_figure(benchmark()).axes
    assert segments(first, "whiskers") == [[40, 50], [25, 31.25], [20, 25]]
    assert segments(first, "promised") == [[20, 20], [10, 10]], "a half and a quarter of 40 ms"
    assert segments(second, "promised") == [[200, 200], [100, 100]]


def test_what_it_says() -> None:
    figure = bench_figure(benchmark(compiled=True))
    assert figure.get_suptitle() == "latency on A Processor, 2 threads, fp32, torch.compile"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [PROMISED]
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["40.0 ms, 25.0 samples/s", "1.60x as fast", "25.0 ms, 40.0 samples/s", "2.00x as fast",
                    "20.0 ms, 50.0 samples/s"]  # fmt: skip


def test_without_a_baseline_there_is_nothing_to_promise() -> None:
    figure = bench_figure(benchmark(versus=None))
    assert not figure.legends
    assert not any("as fast" in text.get_text() for axes in figure.axes for text in axes.texts)
    assert {to_hex(bar.get_facecolor()).upper() for axes in figure.axes for bar in axes.patches} == {OTHER}


def test_nothing_is_cut_off_however_long_the_names_and_numbers() -> None:
    long = {name: f"a-model-with-a-name-that-nobody-wants-to-type-twice-{name}/compressed" for name in NAMES}
    made = benchmark()
    timings = [
        replace(one, model=long[one.model], latency_ms=49_000.0, latency_p90_ms=50_000.0, throughput=12_345.6)
        for one in made.timings
    ]
    models = [replace(one, name=long[one.name]) for one in made.models]
    figure = bench_figure(replace(made, models=models, timings=timings, versus=long["dense"]))
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        texts: list[Text] = [*axes.texts, *axes.get_yticklabels()]
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()
        labels = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert labels[0].y0 > labels[1].y1, "names do not overlap"


def test_png_and_svg(tmp_path: Path) -> None:
    bench_picture(tmp_path / "new" / "bench.png", benchmark())
    with Image.open(tmp_path / "new" / "bench.png") as image:
        image.load()
        assert image.format == "PNG"
        assert (image.width, 600 < image.height < 1200) == (1350, True)
        assert image.getpixel((2, 2))[:3] == (255, 255, 255)
    bench_picture(tmp_path / "bench.SVG", benchmark())
    assert ElementTree.parse(tmp_path / "bench.SVG").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["bench.SVG", "bench.png"], "nothing is left behind"


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bench.jpg' is no name of a picture; one ends with .png or .svg"):
        bench_picture(tmp_path / "bench.jpg", benchmark())
