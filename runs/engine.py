"""Resumable runs: what `records` lack is done, in this process or by several; `fleet` does it on workers that may be lost."""

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import torch

from .records import ERROR, Key, Records, Row


@dataclass(frozen=True)
class Item:
    """Something to be done once. `run` returns its row; a pool pickles it, a fleet calls it with the worker that is free."""

    key: Key
    run: Callable[..., Row]


Engine = Callable[[Sequence[Item]], Iterator[tuple[Item, Row]]]
"""Runs items and gives each back with its row as soon as it is done, or with the row of its failure."""


def run_all(items: Sequence[Item], records: Records, engine: Engine) -> list[Row]:
    """Does what `records` lack, tells of it on stderr, and returns the rows of all items but those that failed."""
    todo = [item for item in items if not records.has(item)]
    began = time.monotonic()
    for number, (item, row) in enumerate(engine(todo), 1):
        records.add(item.key, row)
        left = (time.monotonic() - began) / number * (len(todo) - number)
        failed = f" FAILED: {row[ERROR]}" if ERROR in row else ""
        say(f"{number}/{len(todo)}, {left / 60:.0f} min left: {' '.join(map(str, item.key))}{failed}")
    rows = records.finished(items)
    if missing := len(items) - len(rows):
        say(f"{missing} of {len(items)} failed and are missing from the table; the same command tries them again")
    return rows


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def here(items: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
    """In this process, one after the other."""
    for item in items:
        yield item, attempt(item.run)


def pool(jobs: int) -> Engine:
    """In `jobs` processes of one thread each."""

    def run(items: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        spawn = multiprocessing.get_context("spawn")
        workers = ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,))
        return finished(workers, items, lambda item: partial(attempt, item.run))

    return run


def attempt(run: Callable[[], Row], failure: type[Exception] | tuple[type[Exception], ...] = Exception) -> Row:
    """The row, or in its place what went wrong."""
    try:
        return run()
    except failure as error:
        return {ERROR: f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def finished(executor: Executor, items: Sequence[Item], task: Callable[[Item], Callable[[], Row]]) -> Iterator[tuple[Item, Row]]:
    """Items in the order in which they are done; those that wait are dropped when nobody asks any more."""
    try:
        futures = {executor.submit(task(item)): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
