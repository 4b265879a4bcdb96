import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from upop.report import allocation, allocation_figure, search_curve, search_figure
from upop.structure import Plan

from .samples import plan, search_rows, site, tower

CLIP = tower("vision", 12, {"head_dim": 64, "neuron": 3072}) + tower("text", 12, {"head_dim": 64, "neuron": 2048})


def bars(axes):
    """Bars of each series in a panel, without the outlines."""
    return {box.get_label(): box.patches for box in axes.containers if box.get_label() != "_whole"}


def numbers(axes):
    return [text.get_text() for text in axes.texts]


def test_allocation_is_a_png(tmp_path):
    path = tmp_path / "new" / "allocation.png"
    allocation(path, CLIP, plan(CLIP))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        width, height = (round(150 * inches) for inches in allocation_figure(CLIP, plan(CLIP)).get_size_inches())
        assert abs(image.width - width) <= 1
        assert abs(image.height - height) <= 1
        assert image.getpixel((2, 2))[:3] == (255, 255, 255)
    assert [file.name for file in path.parent.iterdir()] == ["allocation.png"]


def test_allocation_has_a_bar_a_site_with_its_number():
    chosen = plan(CLIP)
    vision, text = allocation_figure(CLIP, chosen).axes
    for axes, name in ((vision, "vision"), (text, "text")):
        drawn = bars(axes)
        assert {label: len(boxes) for label, boxes in drawn.items()} == {"head-dim positions": 12, "neurons": 12}
        kept = [len(chosen.keep[one.name]) for one in CLIP if one.modality == name and one.kind == "neuron"]
        units = 3072 if name == "vision" else 2048
        assert [box.get_height() for box in drawn["neurons"]] == pytest.approx([100 * k / units for k in kept])
        assert numbers(axes)[12:] == [str(k) for k in kept]
        assert axes.get_title().startswith(name)
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(depth) for depth in range(12)]
        outlines = [box for group in axes.containers if group.get_label() == "_whole" for box in group.patches]
        assert {box.get_height() for box in outlines} == {100}
        assert len(outlines) == 24
    assert (vision.get_ylabel(), vision.get_xlabel()) == ("units kept, %", "layer")


def test_allocation_says_what_is_kept():
    sites = tower("text", 2, {"head": 4, "neuron": 10})
    chosen = Plan.of({sites[0].name: [1], sites[1].name: range(5)}, sites)
    figure = allocation_figure(sites, chosen)
    title = figure.get_suptitle().replace("\u00a0", " ").replace("\n", " ")
    assert title == "kept: 5 of 8 heads (62 %), 15 of 20 neurons (75 %)"
    (axes,) = figure.axes
    assert [box.get_height() for box in bars(axes)["heads"]] == [25, 100]  # the site that is not named is whole
    assert axes.get_title().replace("\u00a0", " ") == "text\nhead 62 %, neuron 75 %"


def test_allocation_stays_readable_with_24_layers_and_three_kinds():
    kinds = {"head": 16, "head_dim": 64, "neuron": 4096}
    sites = tower("vision", 24, kinds) + tower("text", 24, kinds)
    figure = allocation_figure(sites, plan(sites))
    assert all(len(numbers(axes)) == 72 for axes in figure.axes)
    assert max(figure.get_size_inches()) <= 15
    figure.draw_without_rendering()
    vision, text = (axes.get_window_extent() for axes in figure.axes)
    assert vision.y0 > text.y1  # stacked
    tall = vision.y0 - text.y1
    assert tall < vision.height


def test_allocation_with_kinds_and_layers_missing():
    sites = [
        site("fusion.x.4.mlp.neuron", "neuron", "fusion", 4, 8),
        site("fusion.x.7.mlp.neuron", "neuron", "fusion", 7, 8),
    ]
    (axes,) = allocation_figure(sites, Plan.whole(sites)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "7"]
    assert {label: len(boxes) for label, boxes in bars(axes).items()} == {"neurons": 2}


def test_allocation_tells_self_from_cross_attention():
    sites = [
        site(f"text.layer.{depth}.{role}.self.head", "head", "text", depth, 12)
        for depth in range(3)
        for role in ("attention", "crossattention")
    ]
    chosen = Plan.of({one.name: range(3 if "cross" in one.name else 6) for one in sites}, sites)
    (axes,) = allocation_figure(sites, chosen).axes
    drawn = bars(axes)
    heights = {label: {box.get_height() for box in boxes} for label, boxes in drawn.items()}
    assert heights == {"heads (attention.self)": {50}, "heads (crossattention.self)": {25}}
    assert len({to_hex(boxes[0].get_facecolor()) for boxes in drawn.values()}) == 2


def test_allocation_tells_an_encoder_from_a_decoder():
    towers = {"text_encoder": 6, "text_decoder.bert": 3}
    sites = [
        site(f"{tower}.encoder.layer.{depth}.attention.self.head", "head", "text", depth, 12)
        for tower in towers
        for depth in range(2)
    ]
    chosen = Plan.of({one.name: range(towers[one.name.split(".encoder.")[0]]) for one in sites}, sites)
    figure = allocation_figure(sites, chosen)
    (axes,) = figure.axes
    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert (legend.x0 >= 0, legend.x1 <= figure.bbox.x1) == (True, True), "no label is cut off"
    heights = {label: {box.get_height() for box in boxes} for label, boxes in bars(axes).items()}
    names = ["heads (text_encoder: attention.self)", "heads (text_decoder: attention.self)"]
    assert heights == {names[0]: {50}, names[1]: {25}}


def test_allocation_refuses():
    with pytest.raises(ValueError, match="there is no site to draw; give the sites"):
        allocation_figure([], Plan.whole(CLIP))
    with pytest.raises(ValueError, match="was it made for this model"):
        allocation_figure(CLIP[:2], Plan.whole(CLIP))


def test_search_curve_is_a_png(tmp_path):
    search_curve(tmp_path / "search.png", search_rows(60), 0.5)
    with Image.open(tmp_path / "search.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (1200, 900))


def test_search_figure_draws_what_was_logged():
    rows = search_rows(200)
    above, below = search_figure(rows, target=0.5).axes
    drawn = {line.get_label(): line for line in above.lines}
    assert list(drawn) == [
        "parameters, all towers", "parameters, vision", "parameters, text", "FLOPs, all towers", "target, 50 %",
    ]  # fmt: skip
    logged = [row for row in rows if "removed/params/text" in row]
    assert list(drawn["parameters, text"].get_xdata()) == [row["step"] for row in logged]
    expected = [100 * row["removed/params/text"] for row in logged]
    assert list(drawn["parameters, text"].get_ydata()) == pytest.approx(expected)
    assert set(drawn["target, 50 %"].get_ydata()) == {50}
    each, mean = below.lines
    assert list(each.get_ydata()) == [row["loss"] for row in rows]
    window = 10
    assert mean.get_ydata()[7] == pytest.approx(sum(row["loss"] for row in rows[7 : 7 + window]) / window)
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == ("removed, %", "task loss", "optimizer step")


def test_search_figure_with_gaps_and_without_loss():
    rows = [
        {"step": 2, "removed/flops": 0.5},
        {"step": 1, "removed/flops": float("nan")},
        {"step": 0, "removed/flops": 0.1},
    ]
    figure = search_figure(rows)
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0, 2]
    assert figure.get_suptitle() == "search: 50.0 % of FLOPs removed at step 2"


def test_search_figure_with_a_constant_loss_and_one_tower_only():
    rows = [{"step": step, "loss": 1.0, "removed/latency/text": 0.0} for step in range(50)]
    above, below = search_figure(rows).axes
    assert above.lines[0].get_label() == "latency, text"
    low, high = below.get_ylim()
    assert low < 1 < high


@pytest.mark.parametrize("rows", [[], [{"step": 1, "silly": 2.0}]])
def test_search_figure_refuses(rows):
    keys = sorted({key for row in rows for key in row})
    with pytest.raises(ValueError, match=r"no row has 'step' and a 'removed/...' to draw") as caught:
        search_figure(rows)
    assert str(caught.value).endswith(f"the {len(rows)} rows have the keys {keys!r}")


def test_what_is_split_by_kind_is_not_drawn():
    rows = [{"step": 1.0, "removed/params": 0.1, "removed/params/vision/neuron": 0.9}]
    lines = [line.get_label() for line in search_figure(rows).axes[0].lines]
    assert not any("neuron" in str(label) for label in lines)
