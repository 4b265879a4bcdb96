"""Galleries come from the same files for every task."""

import pytest

from upop.data import CaptionData, CocoCaptions, CocoRetrieval, Flickr8kCaptions, Flickr8kRetrieval, RetrievalData


def test_tasks_share_the_files_of_a_data_set(files):
    one, other = Flickr8kRetrieval(**files, train_limit=4), Flickr8kCaptions(**files, train_limit=4)
    for split in ("train", "val", "test"):
        assert one.gallery(split).captions == other.gallery(split).captions
        assert one.gallery(split).paths == other.gallery(split).paths
    assert len(one.gallery("train").captions) == 4
    assert CocoRetrieval.lists == CocoCaptions.lists


def test_images_of_a_gallery_have_their_records_ids(files):
    assert list(Flickr8kRetrieval(**files).gallery("val").ids) == [str(number) for number in range(10, 16)]


@pytest.mark.parametrize("kind", [CaptionData, RetrievalData])
def test_a_class_without_files_is_no_data_set(files, kind):
    with pytest.raises(
        TypeError, match=f"{kind.__name__} names no files of its own; use a subclass, such as upop.data"
    ):
        kind(**files)
