"""Run by torchrun or as srun does: the command line, while every process writes down each step, and some die.

    python watched.py NOTES [DEATH] -- ARGUMENTS OF dqdet

NOTES is a folder; DEATH is ``{"step": 4, "rank": 1}`` or ``{"step": 4, "host": 1}``: after so many steps this process,
or all of this host with their agent, are killed, unless NOTES says that they were at this step before.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as lightning

from dqdet.cli import main
from dqdet.runs.processes import this_process
from dqdet.training import engine


class Watcher(lightning.Callback):
    def __init__(self, notes: Path, death: dict) -> None:
        self.notes = notes
        self.death = death

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        images = [target.image_id for target in batch.targets]
        place = [trainer.current_epoch, batch_idx, trainer.world_size]
        with (self.notes / f"{trainer.global_rank}.jsonl").open("a") as file:
            print(json.dumps([*place, images, outputs["loss"].item()]), file=file)
        own = {"rank": trainer.global_rank, "host": this_process().host}
        died = self.notes / f"died-{trainer.global_rank}-{self.death.get('step')}"
        if trainer.global_step != self.death.get("step") or not own.items() & self.death.items() or died.exists():
            return
        died.touch()
        if "host" in self.death and trainer.local_rank == 0:
            os.kill(os.getppid(), signal.SIGKILL)  # the agent
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    own, arguments = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    watcher = Watcher(Path(own[0]), json.loads(own[1]) if own[1:] else {})
    make_trainer = engine.make_trainer
    engine.make_trainer = lambda config, callbacks, *args, **options: make_trainer(
        config, [*callbacks, watcher], *args, **options
    )
    sys.argv = ["dqdet", *arguments]
    main()
