"""What retrieval and captioning share."""

import pytest
import torch

from tests.data.pictures import processor
from upop.data import Flickr8kCaptions, Flickr8kRetrieval


def test_pairs_name_the_image_of_each_caption(files):
    data = Flickr8kRetrieval(**files)
    expected = [n for n, captions in enumerate(data.gallery("val").captions) for _ in captions]
    assert torch.equal(data.eval_pairs("val"), torch.tensor(expected))


def test_captions_are_cut_to_their_words(files, monkeypatch):
    data = Flickr8kRetrieval(**files, clean_captions=True)
    data.set_processor(processor())
    monkeypatch.setattr(data, "max_words", 1)
    texts = data._caption_tokens("val")
    assert {len(texts[number]) for number in range(len(texts))} == {3}  # with both special tokens


@pytest.mark.parametrize("kind", [Flickr8kCaptions, Flickr8kRetrieval])
def test_choices_are_checked(files, kind):
    with pytest.raises(ValueError, match=r"train_captions is 'two'; expected one of \['all', 'one'\]"):
        kind(**files, train_captions="two")
    with pytest.raises(ValueError, match="split 'dev' is none of"):
        kind(**files).gallery("dev")
