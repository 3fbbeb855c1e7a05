"""Whether a difference is one: pairs of trainings that share their seed, and the interval of their mean difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Second minus first, over pairs."""

    mean: float
    interval: tuple[float, float] | None  # of the mean, by Student's t; None: fewer than two pairs
    pairs: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.3f} (no interval)"
        return f"{self.mean:+.3f} [{self.interval[0]:+.3f}, {self.interval[1]:+.3f}]"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """The mean difference of the seeds that both have, with its 95 % interval; None when they share none.

    Args:
        first: seed -> what was measured.
        second: likewise.
    """
    pairs = np.array([second[seed] - first[seed] for seed in first if seed in second])
    if len(pairs) == 0:
        return None
    mean = float(pairs.mean())
    if len(pairs) < 2:
        return Difference(mean, None, 1)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5)
    return Difference(mean, (mean - reach, mean + reach), len(pairs))


def learned(metric: str, first: str, second: str, found: Difference) -> str:
    """A sentence that says what a comparison showed."""
    compared = f"{second} against {first}: {metric} {found}"
    if found.interval is None:
        return f"{compared}; one pair of trainings says nothing about chance."
    if not found.shown:
        return f"{compared} over {found.pairs} seeds: no difference shown."
    return f"{compared} over {found.pairs} seeds: {'better' if found.mean > 0 else 'worse'}."


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one value itself."""
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"
