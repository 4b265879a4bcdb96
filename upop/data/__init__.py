"""Data sets as LightningDataModules, each over its own file format; `class_path: upop.data.<Name>` in a recipe."""

from upop.data.retrieval import CocoRetrieval, Flickr8kRetrieval, Flickr30kRetrieval, RetrievalData
from upop.data.shapes import ShapesRetrieval

__all__ = ["CocoRetrieval", "Flickr8kRetrieval", "Flickr30kRetrieval", "RetrievalData", "ShapesRetrieval"]
