"""Run by torchrun: a training whose losses every process writes down."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from recorder import Recorder

from dqdet.training.engine import train
from dqdet.training.measurement import evaluate
from tiny import tiny_scenes

out, overrides = Path(sys.argv[1]), json.loads(sys.argv[2])
recorder = Recorder()
train(tiny_scenes(**overrides), out, [recorder])
metrics = evaluate(out)
seen = [(images, loss) for *_, images, loss, _ in recorder.steps]
(out / f"process-{dist.get_rank()}.json").write_text(json.dumps({"seen": seen, "metrics": metrics}))
