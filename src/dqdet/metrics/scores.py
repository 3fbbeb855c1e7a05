"""What is not defined, such as an average over nothing, is no score: the official evaluations write -1 for it."""

from __future__ import annotations

from collections.abc import Mapping


def is_score(value: float | None) -> bool:
    """Whether something was measured: neither -1 nor NaN nor missing."""
    return value is not None and value >= 0


def shown(value: float | None) -> str:
    """``0.123``, or ``-`` for what is no score."""
    return f"{value:.3f}" if value is not None and is_score(value) else "-"


def is_kept(found: Mapping[str, float], best: Mapping[str, float], metric: str) -> bool:
    """Whether a model takes the place of the best one so far: the newest of equal ones, and of those without a score.

    Args:
        found: what was measured of it.
        best: the same of the best one; empty when there is none.
        metric: that decides.
    """
    if not is_score(best.get(metric)):
        return True
    return is_score(found.get(metric)) and found[metric] >= best[metric]
