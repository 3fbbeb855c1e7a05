"""How long a training is, and what depends on that.

The length is ``train.epochs`` or ``train.steps``: where one of them is set, the other one of before means nothing any
more. (Set both, and the training ends with what comes first.) The places of the drops are published for a length.
Where another one is set, they move with it, unless they are set too: 40 of 50 epochs become 9.6 of 12, or step 320 of
400. Warm-up does not move: it is for the first steps of an optimiser, however many follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dqdet.config.schema import TrainConfig

LENGTH = ("train.epochs", "train.steps")
DROPS = ("train.drop", "train.drop_steps")


def without_the_other(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted overrides, with the other unit of the length, and of drops that come with a length, unset."""
    length = [option for option in LENGTH if given.get(option) is not None]
    if not length:
        return dict(given)
    unset: dict[str, Any] = dict.fromkeys(LENGTH) if len(length) == 1 else {}
    if any(option in given for option in DROPS):
        unset |= {option: [] for option in DROPS}
    return unset | dict(given)


def moved_drops(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """The drops of a training at the same shares of another length.

    Args:
        before: with drops.
        after: with a new length.

    Returns:
        ``drop`` and ``drop_steps``. They are as before where the length is, or where it is not in their unit.
    """
    same = {"drop": before.drop, "drop_steps": before.drop_steps}
    if (before.epochs, before.steps) == (after.epochs, after.steps):
        return same
    drops, length = (before.drop, before.epochs) if before.drop else (before.drop_steps, before.steps)
    if length is None:
        return same
    if after.epochs is None or (after.steps is not None and before.drop_steps):
        assert after.steps is not None
        # One that falls on the start or the end of a very short training is none.
        steps = [round(drop * after.steps / length) for drop in drops]
        return {"drop": [], "drop_steps": [step for step in steps if 0 < step < after.steps]}
    return {"drop": [round(drop * after.epochs / length, 6) for drop in drops], "drop_steps": []}


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of a whole training."""
    in_epochs = [] if config.epochs is None else [config.epochs * steps_per_epoch]
    in_steps = [] if config.steps is None else [config.steps]
    return min(in_epochs + in_steps)


def drop_places(config: TrainConfig, steps_per_epoch: int) -> list[int]:
    """Optimiser steps after which the learning rates are divided by ten, ascending."""
    if config.schedule == "poly":
        return []
    return sorted([*config.drop_steps, *(round(epoch * steps_per_epoch) for epoch in config.drop)])


def about_drops(before: TrainConfig, after: TrainConfig) -> str | None:
    """What happens to the drops of a training that goes on with another length, in one line; None: nothing to say."""
    drops = before.drop or before.drop_steps
    if before.schedule == "poly" or not drops or (before.epochs, before.steps) == (after.epochs, after.steps):
        return None
    now = f"train.drop={after.drop}" if after.drop else f"train.drop_steps={after.drop_steps}"
    if (before.drop, before.drop_steps) == (after.drop, after.drop_steps):
        return f"{now} stays as it was set, with the new length too; give it to change it"
    return f"{now} from now on, before it was {drops}: the learning rates are those of the new length"
