"""Run by torchrun: trainings whose losses every process writes down, and what they say when they disagree.

    python several_processes.py OUT OVERRIDES [MORE]

MORE is a folder for a training with divided weights, and for trainings that cannot be.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from recorder import Recorder
from uneven import UNEVEN, found_by

from dqdet.errors import DqdetError, Everywhere
from dqdet.training.distributed import check_same, everywhere
from dqdet.training.engine import train
from dqdet.training.evaluation import evaluate
from tiny import tiny_scenes

DIVIDED = {"train__strategy": "fsdp", "train__recompute": True, "train__ema": None, "train__epochs": 1}


def fails(rank: int, message: str = "no space") -> None:
    if dist.get_rank() >= rank:
        raise DqdetError(message)


def said(overrides: dict, out: Path, more: Path) -> dict[str, list]:
    """What this process raises, and whether it is the one to say it."""
    rank = dist.get_rank()
    found = {}
    for name, attempt in {
        "none fails": lambda: everywhere(lambda: fails(2)),
        "one fails": lambda: everywhere(lambda: fails(1)),
        "both fail": lambda: everywhere(lambda: fails(0)),
        "each fails": lambda: everywhere(lambda: fails(0, f"no space for {rank}")),
        "other versions": lambda: check_same({"dqdet": f"0.{rank + 1}", "torch": "2.11"}),
        "other data": lambda: train(tiny_scenes(**overrides | {"data__scenes__train_images": 12 + rank}), more / "new"),
        "used folder": lambda: train(tiny_scenes(**overrides), more / "used"),
        "no run": lambda: evaluate(more / "nowhere" if rank else out),
        "other results": lambda: evaluate(out, out=more / "used" if rank else None),
    }.items():
        try:
            attempt()
        except Everywhere as error:
            found[name] = [str(error), error.here]
    return found


if __name__ == "__main__":
    out, overrides = Path(sys.argv[1]), json.loads(sys.argv[2])
    recorder = Recorder()
    train(tiny_scenes(**overrides), out, [recorder])
    notes = {"metrics": evaluate(out), "seen": [(images, loss) for *_, images, loss, _ in recorder.steps]}
    if sys.argv[3:]:
        more = Path(sys.argv[3])
        divided = Recorder()
        train(tiny_scenes(**overrides | DIVIDED), more / "divided", [divided])
        notes |= {
            "divided": [(images, loss) for *_, images, loss, _ in divided.steps],
            "uneven": {name: found_by(name, more / name, train__strategy="fsdp") for name in UNEVEN},
            "said": said(overrides, out, more),
        }
    (out / f"process-{dist.get_rank()}.json").write_text(json.dumps(notes))
    # All that is tested is done and written: gloo's threads of divided weights may abort an interpreter that ends.
    dist.barrier()
    os._exit(0)
