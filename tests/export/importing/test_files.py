import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from upop.export.importing.files import read

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def same(found):
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [STATE, {"model": STATE}, {"state_dict": STATE, "epoch": 1}])
def test_every_form_of_file_is_read(content, zipped, tmp_path):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    same(read(tmp_path / "a.pth"))


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    same(read(str(tmp_path / "a.safetensors")))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-8])
    with pytest.raises(
        ValueError, match=r"'.*a\.safetensors' cannot be read as safetensors: .*; copy it again"
    ) as caught:
        read(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_torchscript_is_refused_with_a_way_out_that_works(tmp_path):
    """OpenAI's own files are such archives."""
    layer = nn.Linear(3, 2)
    layer.load_state_dict(STATE)
    torch.jit.save(torch.jit.script(layer), tmp_path / "ViT-B-32.pt")
    text = (
        r"'.*ViT-B-32\.pt' is a TorchScript archive, which holds code, and none of it was executed; where you trust"
        r" the file, run torch\.save\(torch\.jit\.load\(FILE, map_location='cpu'\)\.state_dict\(\), 'weights\.pt'\) and"
    )
    with pytest.raises(ValueError, match=text) as caught:
        read(tmp_path / "ViT-B-32.pt")
    assert "\n" not in str(caught.value)
    torch.save(torch.jit.load(tmp_path / "ViT-B-32.pt", map_location="cpu").state_dict(), tmp_path / "weights.pt")
    same(read(tmp_path / "weights.pt"))


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"a\.pt' is no state dict that can be read without executing what is in it"):
        read(tmp_path / "a.pt")


def test_files_that_are_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none\.pth'; give a checkpoint, such as model_base_nlvr"):
        read(tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match="is empty; copy it again"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], r"holds a list; expected tensors by name, alone or under 'model' or 'state_dict'"),
        ({"model": {}}, "holds an empty mapping; expected tensors by name"),
        (STATE | {"epoch": 3}, "holds a int under 'epoch'; expected tensors by name"),
        ({3: torch.zeros(1)}, "holds a Tensor under 3; expected tensors by name"),
    ],
)
def test_contents_that_are_no_state_dict(content, text, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=text):
        read(tmp_path / "a.pth")
