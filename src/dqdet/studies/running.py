"""The trainings of a study: several at a time, each in a folder of its own, none of them twice."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import dqdet
from dqdet.config import parse_overrides, resolve
from dqdet.data.loader import STOPPING
from dqdet.errors import DISK_FULL, DqdetError, Interrupted, listed
from dqdet.runs.folder import CONFIG, LAST, load_config, write_file
from dqdet.training.engine import ELSEWHERE

VALIDATIONS = "validations.json"
FINISHED = "finished.json"
OUTPUT = "output.txt"  # what the training printed

Curve = dict[int, dict[str, float]]  # step -> what was measured after it
FROM_DATA = ("classes", "category_ids", "stuff")


@dataclass(frozen=True)
class Training:
    """One training of a study."""

    label: str  # in progress lines
    folder: Path
    preset: str
    options: dict[str, Any]


def run_all(trainings: Sequence[Training], jobs: int | None, say: Callable[[str], None]) -> None:
    """Train what is not trained yet; trainings that were interrupted go on from their last checkpoint.

    Args:
        trainings: each with its own folder.
        jobs: trainings at a time. They share the CPU cores evenly; GPUs are dealt out in turn.
        say: is called with a progress line after every training.

    Raises:
        DqdetError: a training failed, or a folder has a training with other options; says which one.
        Interrupted: the trainings that ran are saved, the finished ones stay.
    """
    for training in trainings:
        check_options(training)
    waiting = [training for training in trainings if not (training.folder / FINISHED).exists()]
    done, started = len(trainings) - len(waiting), time.monotonic()
    if done:
        say(f"{done} of {len(trainings)} trainings are in the folder")
    try:
        for number, training in enumerate(_trained(waiting, jobs or default_jobs()), start=1):
            left = timedelta(seconds=round((time.monotonic() - started) / number * (len(waiting) - number)))
            say(f"{done + number} of {len(trainings)} trainings, {training.label}; {left} left")
    except (Interrupted, KeyboardInterrupt) as error:
        finished = sum((training.folder / FINISHED).exists() for training in trainings)
        raise Interrupted(
            f"stopped with {finished} of {len(trainings)} trainings finished; the same command goes on"
        ) from error


def default_jobs() -> int:
    """One training for each GPU, or else for each core."""
    return torch.cuda.device_count() or cores()


def cores() -> int:
    """CPU cores that this process may use: threads beyond them wait for each other, which costs more than it gives."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_options(training: Training) -> None:
    """Raise DqdetError if the folder has a training with other options, those of where it runs aside."""
    if not (training.folder / CONFIG).exists():
        return
    configs = (resolve(training.preset, training.options), load_config(training.folder))
    wanted, found = (parse_overrides(config.model_dump(exclude=set(FROM_DATA))) for config in configs)
    differing = [path for path in wanted if path not in ELSEWHERE and wanted[path] != found.get(path)]
    if differing:
        raise DqdetError(
            f"{training.folder}: has a training with other options ({', '.join(differing)}); choose another --out, or "
            "give the options of that training"
        )


def _trained(trainings: Sequence[Training], jobs: int) -> Iterator[Training]:
    """The trainings, as they finish."""
    if jobs == 1:
        for training in trainings:
            _train(training)
            yield training
        return
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(trainings)) or 1
    threads = max(1, cores() // jobs)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(jobs, context, _prepare_worker, (context.Value("i", 0), threads)) as pool:
        try:
            futures: dict[Future[None], Training] = {
                pool.submit(_train_in_worker, training): training for training in trainings
            }
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise DqdetError(
                "a training's process was ended from outside, perhaps for lack of memory; the same command goes on, "
                "with fewer --jobs if need be"
            ) from error
        except (Interrupted, KeyboardInterrupt, GeneratorExit):
            _stop(pool, [child for child in multiprocessing.active_children() if child not in others])
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _stop(pool: ProcessPoolExecutor, workers: Sequence[BaseProcess]) -> None:
    """Let the trainings end after their step, saved; when interrupted once more, at once."""
    for worker in workers:
        worker.terminate()  # the signal may have reached this process alone
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    except KeyboardInterrupt:
        for worker in workers:
            worker.kill()
        raise


def _prepare_worker(started: Any, threads: int) -> None:
    """Its share of the threads, a GPU of its own if there are several, and an end when the study is killed."""
    torch.set_num_threads(threads)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % len(visible.split(","))]  # before CUDA starts
    _handle_stopping(_stop_later)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_stopping = threading.Event()  # of a worker: it was interrupted, and begins no other training


def _stop_later(number: int, frame: FrameType | None) -> None:
    _stopping.set()


def _stop_now(number: int, frame: FrameType | None) -> None:
    if not _stopping.is_set():  # it may come twice, from the terminal and from the main process
        _stopping.set()
        raise KeyboardInterrupt


def _train_in_worker(training: Training) -> None:
    if _stopping.is_set():
        raise Interrupted("stopped before it began")
    _handle_stopping(_stop_now)
    try:
        _train(training)
    except (Interrupted, KeyboardInterrupt) as error:
        _stopping.set()
        raise Interrupted("stopped") from error
    finally:
        _handle_stopping(_stop_later)


def _handle_stopping(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in STOPPING:
        signal.signal(number, handler)


def _train(training: Training) -> None:
    folder, started = training.folder, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = [Validations(folder / VALIDATIONS)]
    with (
        (folder / OUTPUT).open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            if (folder / LAST).exists():
                given = parse_overrides(training.options)
                moved = {path: value for path, value in given.items() if path in ELSEWHERE}
                dqdet.train(resume=folder, callbacks=callbacks, **moved)
            else:
                dqdet.train(training.preset, out=folder, callbacks=callbacks, **training.options)
        except Interrupted:
            raise
        except DqdetError as error:
            raise DqdetError(f"{training.label}: {error}") from error
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DqdetError(f"{training.label}: {folder} cannot be written ({error.strerror}); make space") from error
    seconds = round(time.monotonic() - started)
    write_file(folder / FINISHED, json.dumps({"seconds": seconds, "machine": machine()}).encode())


class Validations(Callback):
    """Keeps what every validation measured: the last one counts, not the best, which would be chosen by chance."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {
            name.removeprefix("val/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        curve = {**read_curve(self.file.parent), trainer.global_step: measured}
        write_file(self.file, json.dumps(curve, indent=1).encode())


def read_curve(folder: Path) -> Curve:
    """What the validations of a training measured, in order; empty when there was none yet."""
    file = folder / VALIDATIONS
    if not file.exists():
        return {}
    return {int(step): measured for step, measured in sorted(json.loads(file.read_text()).items(), key=_step)}


def _step(entry: tuple[str, Any]) -> int:
    return int(entry[0])


def is_finished(folder: Path) -> bool:
    return (folder / FINISHED).exists()


def none_finished(out: Path, study: str) -> DqdetError:
    """That there is nothing to report of a study, and what its folder has instead."""
    if others := sorted(file.parent.name for file in out.glob(f"*/{FINISHED}")):
        return DqdetError(
            f"{out}: its finished trainings ({listed(others)}) are others than asked for; give the options that they "
            "were trained with"
        )
    return DqdetError(f"{out}: no finished training of {study}; leave out --report to train")


def trained_on(folder: Path) -> str:
    """The machine of a finished training."""
    finished = json.loads((folder / FINISHED).read_text())
    return str(finished.get("machine") or finished["device"])  # as it was called first


def machine() -> str:
    """This machine, in words."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    return f"{platform.machine()}, {device}, PyTorch {torch.__version__}"


def small_name(label: str) -> str:
    """A label as part of a folder's name."""
    return "".join(character if character.isalnum() else "-" for character in label.lower()).strip("-")
