"""Metrics: pure functions and thin torchmetrics shells around them.

The modules :mod:`~upop.metrics.vqa` and :mod:`~upop.metrics.captions` also write the files that test servers take.
"""

from upop.metrics.captions import caption_scores
from upop.metrics.gathering import gather_by_index
from upop.metrics.reasoning import nlvr_accuracy, sentence_group
from upop.metrics.recall import RetrievalRecall, ranks, recall_at, retrieval_recalls
from upop.metrics.reranked import reranked_ranks, reranked_recalls
from upop.metrics.vqa import accuracy_by_question_type, vqa_accuracy

__all__ = [
    "RetrievalRecall",
    "accuracy_by_question_type",
    "caption_scores",
    "gather_by_index",
    "nlvr_accuracy",
    "ranks",
    "recall_at",
    "reranked_ranks",
    "reranked_recalls",
    "retrieval_recalls",
    "sentence_group",
    "vqa_accuracy",
]
