"""Requests that wait for the model: a bounded line, from which a thread takes what is there as one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from dqdet.predict.predictor import Predictor, Prepared
from dqdet.types import Outcome


class Busy(Exception):
    """As many requests wait as may."""


class Waiting(NamedTuple):
    prepared: Prepared
    found: Future[Outcome]


class Line:
    """Runs a model on whatever waits, at most a batch of the predictor at a time, in the order of arrival.

    Args:
        predictor: of the model.
        most: requests that may wait.
    """

    def __init__(self, predictor: Predictor, most: int) -> None:
        self.predictor = predictor
        self.waiting: queue.Queue[Waiting | None] = queue.Queue(most)
        self.thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        self.waiting.put(None)
        self.thread.join()

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
            self._answer(batch)
            if ended:
                return

    def _answer(self, batch: Sequence[Waiting]) -> None:
        try:
            outcomes = self.predictor.outcomes_of([entry.prepared for entry in batch])
        except Exception as error:  # each request says so, and the next ones are tried
            for entry in batch:
                entry.found.set_exception(error)
            return
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.found.set_result(outcome)
