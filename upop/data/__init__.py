"""Data sets as LightningDataModules, each over its own file format; `class_path: upop.data.<Name>` in a recipe."""

from upop.data.captioning import CaptionData, CocoCaptions, Flickr8kCaptions, Flickr30kCaptions
from upop.data.nlvr import Nlvr
from upop.data.nlvr2 import Nlvr2
from upop.data.retrieval import CocoRetrieval, Flickr8kRetrieval, Flickr30kRetrieval, RetrievalData
from upop.data.shapes import ShapesCaptioning, ShapesRetrieval
from upop.data.shapes_reasoning import ShapesReasoning
from upop.data.shapes_vqa import ShapesVqa
from upop.data.vqa_data import Daquar, VqaV2

__all__ = [
    "CaptionData",
    "CocoCaptions",
    "CocoRetrieval",
    "Daquar",
    "Flickr8kCaptions",
    "Flickr8kRetrieval",
    "Flickr30kCaptions",
    "Flickr30kRetrieval",
    "Nlvr",
    "Nlvr2",
    "RetrievalData",
    "ShapesCaptioning",
    "ShapesReasoning",
    "ShapesRetrieval",
    "ShapesVqa",
    "VqaV2",
]
