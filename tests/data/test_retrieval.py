"""Data sets in the files that people have: found, limited, cleaned; the real Flickr8k where it is at hand."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.data.loading import module
from tests.data.pictures import flickr8k, processor
from upop.data import Flickr8kRetrieval

FLICKR8K = Path("../shared/data/flickr8k")


def test_a_limit_takes_the_first_images_and_reads_no_others(files):
    data = module(files, train_limit=3, batch_size=2)
    assert [record.image for record in data.gallery("train").records] == [f"images/{n}.png" for n in range(3)]
    assert len(data.train_dataloader()) == 3


def test_captions_are_cleaned_on_request(tmp_path):
    files = flickr8k(tmp_path / "data")
    path = tmp_path / "data/dataset_flickr8k.json"
    path.write_text(path.read_text().replace('"red', '"RED . (').replace('"green', '"Green ! '))
    raw, clean = (list(module(files, clean_captions=value).test_dataloader()[1]) for value in (False, True))
    unknown = processor().tokenizer.unk_token_id
    assert any((batch["input_ids"] == unknown).any() for batch in raw)
    assert not any((batch["input_ids"] == unknown).any() for batch in clean)


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason=f"needs {FLICKR8K}")
@pytest.mark.parametrize("annotations", [FLICKR8K, FLICKR8K / "dataset_flickr8k.json.gz"])
@pytest.mark.parametrize("images", [FLICKR8K, FLICKR8K / "images"])
def test_the_real_flickr8k_is_found_however_it_is_named(images, annotations):
    data = Flickr8kRetrieval(str(images), str(annotations), folds=5)
    data.check()
    assert data.gallery("test").load(0).size == (128, 128)
    assert len(data.eval_pairs("test")) == 5000


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason=f"needs {FLICKR8K}")
def test_a_batch_of_the_real_flickr8k():
    data = Flickr8kRetrieval(str(FLICKR8K), str(FLICKR8K), batch_size=8, num_workers=0)
    checkpoint = Path("../shared/checkpoints/clip-mini-flickr8k")
    if not checkpoint.is_dir():
        pytest.skip(f"needs {checkpoint}")
    data.set_processor(AutoProcessor.from_pretrained(checkpoint))
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 96, 96)
    assert len(data.train_dataloader()) == 30_000 // 8
    image = data.gallery("val").load(0)
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
