"""The best pairs of a query and a class, which all that is found begins with. Exported models have it inside."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dqdet.config import Config, InstanceLossConfig, LossConfig, SequenceLossConfig


class Pairs(NamedTuple):
    """K pairs of every image, best first."""

    scores: Tensor  # [B, K] of the class, in 0..1
    labels: Tensor  # [B, K] int64
    queries: Tensor  # [B, K] int64


def best_pairs(logits: Tensor, config: Config, limit: int) -> Pairs:
    """The ``limit`` best pairs, or all, by the score of the class, as the loss of the model has trained it.

    Args:
        logits: ``[B, Q, C]``, or ``[B, Q, C + 1]`` with one for "no object".
        config: of the model.
        limit: pairs at most.
    """
    classes = len(config.classes)
    if isinstance(config.loss, LossConfig) and config.loss.classification == "cross_entropy":
        return classes_of_queries(logits, classes, limit)
    apart = isinstance(config.loss, LossConfig | SequenceLossConfig | InstanceLossConfig)
    return queries_and_classes(logits, classes, limit, apart)


def queries_and_classes(logits: Tensor, classes: int, limit: int, apart: bool = True) -> Pairs:
    """Every pair is a candidate, so that a query may be reported under several classes (Deformable-DETR).

    Args:
        logits: ``[B, Q, C]``, or ``[B, Q, C + 1]`` with one for "no object", which is never reported.
        classes: C.
        limit: pairs at most.
        apart: classes have sigmoid scores of their own; otherwise they share a softmax (Mask2Former).
    """
    logits = logits.float()
    scores = (logits.sigmoid() if apart else logits.softmax(-1))[..., :classes].flatten(1)  # [B, Q * C]
    scores, kept = scores.topk(min(limit, scores.shape[1]))  # [B, K]
    return Pairs(scores, kept % classes, kept // classes)


def classes_of_queries(logits: Tensor, classes: int, limit: int) -> Pairs:
    """A query is reported once, under its best class; "no object" takes part in the softmax only (DETR).

    Arguments as of :func:`queries_and_classes`.
    """
    scores, labels = logits.float().softmax(-1)[..., :classes].max(-1)  # [B, Q]
    scores, queries = scores.topk(min(limit, scores.shape[1]))  # [B, K]
    return Pairs(scores, labels.gather(1, queries), queries)
