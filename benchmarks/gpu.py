"""What only a GPU can show, in pieces that can be interrupted: tests, speed, sampling alone, a real training.

    python benchmarks/gpu.py [--pieces check speed sampling training] [--minutes 9] [--table docs/gpu.md]

Every measurement is a file under ``--out`` and is not repeated. A piece begins nothing new after its minutes; the same
command goes on where it stopped. ``--device cpu --tiny`` tries the script itself, without a GPU, in minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from dqdet.errors import DqdetError
from gpu import check, sampling, speed, training
from gpu.measurements import Folder, Setting, run_piece
from gpu.table import make_table

PIECES = {"check": check, "speed": speed, "sampling": sampling, "training": training}


def check_device(device: torch.device) -> None:
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks for a card: trainings take one if there is one
    elif not torch.cuda.is_available():
        raise DqdetError("no CUDA device, or a PyTorch without CUDA; --device cpu --tiny tries the script without one")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the measurements")
    parser.add_argument("--pieces", nargs="*", choices=PIECES, default=list(PIECES), help="none: only the table")
    parser.add_argument("--minutes", type=float, default=9, help="after which a piece begins nothing new")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--table", type=Path, help="write the table of all measurements to this file")
    parser.add_argument("--note", default="", help="what a reader of the table has to know of these measurements")
    options = parser.parse_args()

    folder = Folder(options.out)
    setting = Setting(torch.device(options.device), options.tiny)
    if options.pieces:
        check_device(setting.device)
        folder.check(setting)
    for piece in options.pieces:
        run_piece(piece, PIECES[piece].measurements(setting), folder, setting, options.minutes)
    if options.table:
        options.table.write_text(make_table(folder, setting, options.note), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except DqdetError as error:
        sys.exit(f"error: {error}")
