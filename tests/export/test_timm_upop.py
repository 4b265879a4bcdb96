import json

import pytest
import torch
from torch import nn

from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.export import save
from upop.export.timm_upop import load
from upop.families import find_sites
from upop.structure import KINDS
from upop.surgery import shrink_


@pytest.fixture
def cut(tmp_path):
    model = samples.model("timm_vit")
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"mean": (0.25, 0.5, 0.75)}
    sites = find_sites(model, KINDS)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    return model, save(model, None, tmp_path / "out", plan, KINDS)


@pytest.mark.parametrize("fused", [True, False])
def test_the_model_is_the_cut_one(cut, fused):
    model, path = cut
    loaded = load(path)
    for part in loaded.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused  # the two paths take the scale from different places
    assert torch.allclose(tiny.outputs(loaded), tiny.outputs(model), atol=1e-5)
    assert not loaded.training
    assert isinstance(loaded, nn.Module)
    assert list(loaded.pretrained_cfg["mean"]) == [0.25, 0.5, 0.75]


def test_the_precision_is_that_of_the_file(tmp_path):
    model = samples.model("timm_vit").to(torch.bfloat16)
    sites = find_sites(model, KINDS)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    loaded = load(str(save(model, None, tmp_path / "out", plan, KINDS)))
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}


def test_a_plan_that_does_not_fit_the_weights(cut):
    _, path = cut
    config = json.loads((path / "config.json").read_text())
    config["compression"]["keep"]["blocks.0.mlp.neuron"] = "0"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.mlp\.fc1\.weight"):
        load(path)
