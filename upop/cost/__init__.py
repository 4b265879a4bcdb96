"""What a model costs under a plan: parameters and FLOPs exactly, latency by a table of measured times.

Biases, softmax and norms cost no FLOPs here, as in torch's FlopCounterMode: one multiply-add counts as two. Cost is
what a user deploys: momentum copies, queues, teachers and masks never count.
"""

from __future__ import annotations

from upop.cost.counting import Measured, measure
from upop.cost.latency import Curve, LatencySettings, LatencyTable
from upop.cost.model import CostModel, Share

__all__ = ["CostModel", "Curve", "LatencySettings", "LatencyTable", "Measured", "Share", "measure"]
