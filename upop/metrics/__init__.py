"""Metrics: pure functions on features and thin torchmetrics shells around them."""

from upop.metrics.recall import RetrievalRecall, ranks, recall_at, retrieval_recalls

__all__ = ["RetrievalRecall", "ranks", "recall_at", "retrieval_recalls"]
