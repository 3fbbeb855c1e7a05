"""Requests that wait for the model: a bounded line, from which a few threads take what is there as batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch

from dqdet.errors import UnfitImage, lack_of_memory
from dqdet.predict.predictor import Predictor, Prepared
from dqdet.types import Outcome


class Busy(Exception):
    """As many requests wait as may."""


class Waiting(NamedTuple):
    """A request; what it raises is its answer."""

    read: Callable[[], Prepared]  # before the model
    answer: Callable[[Prepared, Outcome], bytes]  # after it
    answered: Future[bytes]


class Line:
    """Runs a model on whatever waits, at most a batch of the predictor at a time, in the order of arrival.

    A batch is read, predicted and answered in one thread, because each change of threads waits for Python's lock.
    Meanwhile other threads do the same with other batches, each with its share of the processors: threads of PyTorch
    that work on one batch together wait for each other after every operation. A batch that is alone has all processors.

    Args:
        predictor: of the model.
        most: requests that may wait.
        at_once: batches that are worked on at the same time.
    """

    def __init__(self, predictor: Predictor, most: int, at_once: int) -> None:
        self.predictor = predictor
        self.waiting: queue.Queue[Waiting | None] = queue.Queue(most)
        self.processors = torch.get_num_threads()
        self.batches = 0  # that are worked on
        self.counting = threading.Lock()
        self.threads = [threading.Thread(target=self._work, name=f"model-{i}", daemon=True) for i in range(at_once)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join()

    def join(self, read: Callable[[], Prepared], answer: Callable[[Prepared, Outcome], bytes]) -> Future[bytes]:
        """Get in line.

        Args:
            read: the image of the request.
            answer: the body of the response to what was found in it.

        Raises:
            Busy: the line is full.
        """
        entry = Waiting(read, answer, Future())
        try:
            self.waiting.put_nowait(entry)
        except queue.Full as error:
            raise Busy from error
        return entry.answered

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
                self._answer([entry for entry in batch if entry.answered.set_running_or_notify_cancel()])
            if ended:
                return

    @contextmanager
    def _share(self) -> Iterator[None]:
        """As one of the batches that are worked on."""
        with self.counting:
            self.batches += 1
            alone = self.batches == 1 and self.waiting.empty()
        torch.set_num_threads(self.processors if alone else max(1, self.processors // len(self.threads)))  # of this one
        try:
            yield
        finally:
            with self.counting:
                self.batches -= 1

    def _answer(self, batch: Sequence[Waiting]) -> None:
        prepared: list[tuple[Waiting, Prepared]] = []
        for entry in batch:
            with _told(entry):
                prepared.append((entry, entry.read()))
        if prepared:
            self._predict(prepared)

    def _predict(self, prepared: Sequence[tuple[Waiting, Prepared]]) -> None:
        """Images for which there is not enough memory together, or of which one is unfit for the model, go alone."""
        outcomes: list[Outcome] = []  # none, if the model fails
        with _told(*(entry for entry, _ in prepared)):
            try:
                outcomes = self.predictor.outcomes_of([image for _, image in prepared])
            except (UnfitImage, MemoryError, RuntimeError) as error:
                may_go_alone = isinstance(error, UnfitImage) or lack_of_memory(error) is not None
                if len(prepared) == 1 or not may_go_alone:
                    raise
        if not outcomes and not any(entry.answered.done() for entry, _ in prepared):
            for one in prepared:
                self._predict([one])
        for (entry, image), outcome in zip(prepared, outcomes, strict=False):
            with _told(entry):
                entry.answered.set_result(entry.answer(image, outcome))


@contextmanager
def _told(*entries: Waiting) -> Iterator[None]:
    """Requests are told what goes wrong, and the next ones are tried."""
    try:
        yield
    except Exception as error:
        for entry in entries:
            entry.answered.set_exception(error)
