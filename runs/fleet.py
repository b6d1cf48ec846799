"""Workers that may die or hang: each is driven by a thread, started again when it was lost, and its item goes elsewhere."""

import contextlib
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

from .engine import Engine, Item, attempt, say
from .records import ERROR, Row
from .schedule import Schedule

RESTARTS = 3
"""How often in a row a worker may be lost or fail to start, without an item done in between, before it is given up."""


Failure = type[Exception] | tuple[type[Exception], ...]


class Lost(Exception):
    """A worker is gone or hangs, and with it what it was working on. The message says how that showed."""


class Unfit(Lost):
    """A worker that would give other results than the others, or none: it is not started again."""


class NoWorkers(RuntimeError):
    """All workers were given up before the work was done."""


class Worker(Protocol):
    """What items are run with: `Item.run` gets it as its only argument, and whatever it asks of it may raise `Lost`."""

    name: str

    def start(self) -> None:
        """Make it ready for items; also again after it was lost. Raises `Lost`."""

    def stop(self) -> None:
        """Free all that it holds."""


def fleet(workers: Sequence[Worker], failure: Failure) -> Engine:
    """An item at a time on each worker. A `failure` is the item's own, any other exception but `Lost` ends the run.

    At the first Ctrl-C no item is begun any more and those under way are finished, at the second all is dropped.
    """

    def run(items: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        crew = Crew(items, workers, failure)
        with crew.at_work(), crew.closed_by_interrupt() as interrupted:
            for _ in range(len(items)):
                if (answer := crew.answers.get()) is None:
                    break
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        if interrupted:
            raise KeyboardInterrupt

    return run


class Crew:
    """The threads of one run, and what they share. An answer of None says that the last of them has left."""

    def __init__(self, items: Sequence[Item], workers: Sequence[Worker], failure: Failure) -> None:
        self.workers, self.failure = workers, failure
        self.schedule = Schedule(items, [worker.name for worker in workers])
        self.changed = threading.Condition()
        self.answers: queue.SimpleQueue[tuple[Item, Row] | BaseException | None] = queue.SimpleQueue()
        self.dropped = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """All workers, until the block is left."""
        threads = [threading.Thread(target=self.drive, args=(worker,), daemon=True) for worker in self.workers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.dropped = True
            self.close()
            stops = [threading.Thread(target=worker.stop, daemon=True) for worker in self.workers]
            for thread in stops:
                thread.start()
            for thread in stops:
                thread.join()

    @contextlib.contextmanager
    def closed_by_interrupt(self) -> Iterator[list[int]]:
        """Makes the first Ctrl-C end the handing out of items; what is yielded is then no longer empty."""
        interrupted: list[int] = []

        def interrupt(number: int, frame: object) -> None:
            if interrupted:
                raise KeyboardInterrupt
            interrupted.append(number)
            say("Ctrl-C: what is under way is finished, nothing more is begun; once more to drop it")
            threading.Thread(target=self.close, daemon=True).start()  # a lock must not be waited for in a signal's handler

        if threading.current_thread() is not threading.main_thread():
            yield interrupted
            return
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield interrupted
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        with self.changed:
            self.schedule.close()
            self.changed.notify_all()

    def drive(self, worker: Worker) -> None:
        """A thread's whole life: takes items until nothing is left that could come back."""
        try:
            self.serve(worker)
        except BaseException as error:
            self.answers.put(error)
        finally:
            self.leave(worker)

    def serve(self, worker: Worker) -> None:
        ready, in_a_row = False, 0
        while (item := self.take(worker)) and in_a_row <= RESTARTS:
            try:
                if not ready:
                    worker.start()
                    ready = True
                row = attempt(partial(item.run, worker), self.failure)
            except Lost as lost:
                self.lose(worker, item, str(lost), blame=ready)
                if isinstance(lost, Unfit):
                    return
                ready, in_a_row = False, in_a_row + 1
            else:
                in_a_row = 0
                with self.changed:
                    self.schedule.finish(worker.name)
                    self.changed.notify_all()
                self.answers.put((item, row))

    def take(self, worker: Worker) -> Item | None:
        """Waits for an item; None if there will be none."""
        with self.changed:
            while (item := self.schedule.take(worker.name)) is None and not self.schedule.over:
                self.changed.wait()
            return item

    def lose(self, worker: Worker, item: Item, reason: str, blame: bool) -> None:
        """The item goes elsewhere, or is answered for when lost too often; for a worker that did not start it gets no blame."""
        name = " ".join(map(str, item.key))
        with self.changed:
            if blame:
                ended = self.schedule.lose(worker.name, reason)
            else:
                ended = []
                self.schedule.give_back(worker.name)
            self.changed.notify_all()
        if not self.dropped:
            say(f"{worker.name} {'was lost at ' + name if blame else 'did not start'}: {reason}")
        if ended:
            reasons = "; ".join(f"{loss.worker}: {loss.reason}" for loss in ended)
            self.answers.put((item, {ERROR: f"Lost: {len(ended)} workers were lost at it ({reasons})"}))

    def leave(self, worker: Worker) -> None:
        """Takes a worker off the list; the last one says so, and that it is the last."""
        with self.changed:
            if worker.name in self.schedule.under_way:
                self.schedule.give_back(worker.name)
            self.schedule.retire(worker.name)
            self.changed.notify_all()
            alone, left = not self.schedule.workers, self.schedule.left
        if alone and left:
            self.answers.put(NoWorkers(f"no worker is left for {left} items; the lines above say how each was lost"))
        if alone:
            self.answers.put(None)
