"""Requests that wait for the model: a bounded line, from which a few threads take what is there as batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch

from dqdet.predict.predictor import Predictor, Prepared
from dqdet.types import Outcome


class Busy(Exception):
    """As many requests wait as may."""


class Waiting(NamedTuple):
    prepared: Prepared
    found: Future[Outcome]


class Line:
    """Runs a model on whatever waits, at most a batch of the predictor at a time, in the order of arrival.

    Batches that are in the model at the same time share the processors: a thread of PyTorch that has one for itself
    never waits for others, which those of one batch do after every operation. A batch that is alone has them all.

    Args:
        predictor: of the model.
        most: requests that may wait.
        at_once: batches in the model at the same time.
    """

    def __init__(self, predictor: Predictor, most: int, at_once: int = 1) -> None:
        self.predictor = predictor
        self.waiting: queue.Queue[Waiting | None] = queue.Queue(most)
        self.processors = torch.get_num_threads()
        self.working = 0
        self.count = threading.Lock()
        self.threads = [threading.Thread(target=self._work, name=f"model_{i}", daemon=True) for i in range(at_once)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join()

    def join(self, prepared: Prepared) -> Future[Outcome]:
        """Get in line.

        Raises:
            Busy: the line is full.
        """
        entry = Waiting(prepared, Future())
        try:
            self.waiting.put_nowait(entry)
        except queue.Full as error:
            raise Busy from error
        return entry.found

    def _work(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch = [first]
            ended = False
            with suppress(queue.Empty):
                while len(batch) < self.predictor.batch and not ended:
                    entry = self.waiting.get_nowait()
                    if entry is None:
                        ended = True
                    else:
                        batch.append(entry)
            with self._share():
                self._answer(batch)
            if ended:
                return

    @contextmanager
    def _share(self) -> Iterator[None]:
        """Among the batches that are in the model, with a share of the processors."""
        with self.count:
            self.working += 1
            torch.set_num_threads(max(1, self.processors // self.working))  # of this thread
        try:
            yield
        finally:
            with self.count:
                self.working -= 1

    def _answer(self, batch: Sequence[Waiting]) -> None:
        try:
            outcomes = self.predictor.outcomes_of([entry.prepared for entry in batch])
        except Exception as error:  # each request says so, and the next ones are tried
            for entry in batch:
                entry.found.set_exception(error)
            return
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.found.set_result(outcome)
