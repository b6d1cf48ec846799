"""Who does what next: pure bookkeeping, without clocks and threads, so that `fleet` and `simulation` run on the same rules."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

Task = TypeVar("Task")

TRIES = 3
"""How often an item may be lost before it counts as failed: one that brings down whatever works on it must not stop the run."""


class Loss(NamedTuple):
    worker: str
    reason: str


class Schedule(Generic[Task]):
    """Hands out `tasks` in order. One that is lost goes to the front, and to another worker if there is one.

    A task is waiting, under way, or answered for. `workers` are those that may still come back for more.
    """

    def __init__(self, tasks: Iterable[Task], workers: Iterable[str], tries: int = TRIES) -> None:
        self.waiting = deque(tasks)
        self.workers = set(workers)
        self.tries = tries
        self.closed = False
        self.under_way: dict[str, Task] = {}
        self.losses: dict[int, list[Loss]] = {}

    def take(self, worker: str) -> Task | None:
        """The next task for a worker; None if there is none for it at present."""
        for place, task in enumerate(() if self.closed else self.waiting):
            lost_here = {loss.worker for loss in self.losses.get(id(task), ())}
            if worker not in lost_here or self.workers <= lost_here:
                del self.waiting[place]
                self.under_way[worker] = task
                return task
        return None

    def give_back(self, worker: str) -> None:
        """What a worker took goes back to the front, through no fault of the task."""
        self.waiting.appendleft(self.under_way.pop(worker))

    def finish(self, worker: str) -> None:
        """A worker is through with its task."""
        self.losses.pop(id(self.under_way.pop(worker)), None)

    def lose(self, worker: str, reason: str) -> list[Loss]:
        """A worker was lost with its task, which is tried elsewhere; after too many tries, the losses that ended it."""
        task = self.under_way.pop(worker)
        losses = self.losses.setdefault(id(task), [])
        losses.append(Loss(worker, reason))
        if len(losses) >= self.tries:
            return self.losses.pop(id(task))
        self.waiting.appendleft(task)
        return []

    def retire(self, worker: str) -> None:
        """A worker gets nothing any more."""
        self.workers.discard(worker)

    def close(self) -> None:
        """Nothing is handed out any more; what is under way may end."""
        self.closed = True

    @property
    def left(self) -> int:
        """How many still wait to be handed out."""
        return 0 if self.closed else len(self.waiting)

    @property
    def over(self) -> bool:
        return not self.left and not self.under_way
