"""The schedule under a clock of its own: how well numbers of workers would be used that are not at hand.

    python -m runs.simulation [--times output/rows.jsonl] [--median 3] [--rows 100000] [--workers 1 8 64 512]

Rows take times of the shape that a real run measured (--times: its rows.jsonl), scaled to --median seconds. Workers start, die
and hang at random, and start again. What all share is the driver, which serves one row at a time: its work on a row and the
transfer of the row's pictures over its link. The rules of who does what are `schedule`'s own.
"""

import argparse
import heapq
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from .records import ERROR, read_rows
from .schedule import Schedule


@dataclass(frozen=True)
class World:
    """What a run meets, in seconds, bytes, and losses an hour of each worker."""

    start: float = 60.0
    """Until a worker takes rows: the server's start and the load of the model."""
    deaths: float = 0.01
    """Lost at once."""
    hangs: float = 0.002
    """Lost after `hung`."""
    hung: float = 60.0
    driver: float = 0.01
    """Of the driver's processor for a row."""
    row_bytes: float = 1e6
    """Of a row's pictures, there and back."""
    link: float = 125e6
    """Bytes a second of the driver's link: 1 Gbit/s."""

    @property
    def shared(self) -> float:
        """What a row costs that no second worker can speed up."""
        return max(self.driver, self.row_bytes / self.link)


@dataclass(frozen=True)
class Outcome:
    """`efficiency` is the share of all workers' time from the first to the last row that went into rows which were kept."""

    workers: int
    hours: float
    efficiency: float
    driver_busy: float
    lost: int
    failed: int


def simulate(times: Sequence[float], rows: int, workers: int, world: World, seed: int = 0) -> Outcome:
    """A run of `rows` whose times are drawn from `times`."""
    draw = random.Random(seed)
    seconds = draw.choices(times, k=rows)
    names = [str(number) for number in range(workers)]
    schedule = Schedule(range(rows), names)
    order = itertools.count()
    # (when, which came first, worker, whether it was lost at its row); every worker begins by starting.
    events = [(world.start, next(order), name, None) for name in names]
    idle: list[str] = []
    driver_free = useful = ended = 0.0
    lost = failed = 0
    while events:
        now, _, name, was_lost = heapq.heappop(events)
        if was_lost:
            lost += 1
            failed += bool(schedule.lose(name, ""))
            heapq.heappush(events, (now + world.start, next(order), name, None))
        else:
            idle.append(name)
        if was_lost is False:
            useful += seconds[schedule.under_way[name]]
            schedule.finish(name)
            ended = now
        for free in list(idle):
            if (row := schedule.take(free)) is not None:
                idle.remove(free)
                driver_free = max(now, driver_free) + world.shared
                gone, after = loss(draw, seconds[row], world)
                heapq.heappush(events, (driver_free + after, next(order), free, gone))
    return Outcome(workers, ended / 3600, useful / (workers * ended), rows * world.shared / ended, lost, failed)


def loss(draw: random.Random, seconds: float, world: World) -> tuple[bool, float]:
    """Whether a worker is lost at a row, and after how long its end or its loss is noticed."""
    died, hung = (draw.expovariate(rate / 3600) if rate else math.inf for rate in (world.deaths, world.hangs))
    if min(died, hung) >= seconds:
        return False, seconds
    return True, died if died < hung else hung + world.hung


def shape(file: Path | None) -> list[float]:
    """Times of rows in units of their median: measured ones, or without a file a log-normal's, of which 2 in 100 are above 2."""
    if file is None:
        draw = random.Random(0)
        times = [draw.lognormvariate(0, math.log(2) / 2.05) for _ in range(10_000)]
    else:
        times = [row["seconds"] for row in read_rows(file) if ERROR not in row]
    middle = statistics.median(times)
    return [time / middle for time in times]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    lines = [
        "| workers | hours | efficiency | driver busy | workers lost | rows failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {o.workers} | {o.hours:.2f} | {o.efficiency:.1%} | {o.driver_busy:.1%} | {o.lost} | {o.failed} |" for o in outcomes
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, help="rows.jsonl of a run; without it a log-normal")
    parser.add_argument("--median", type=float, default=3.0, help="seconds of a row; default 3")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    for field in fields(World):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    options = parser.parse_args()
    world = replace(World(), **{field.name: getattr(options, field.name) for field in fields(World)})
    times = [options.median * unit for unit in shape(options.times)]
    mean, tail = statistics.fmean(times), sorted(times)[int(0.99 * len(times))]
    print(f"{options.rows} rows, mean {mean:.2f} s, 99th percentile {tail:.2f} s")
    print(f"the driver serves at most {1 / world.shared:.0f} rows a second, enough for {mean / world.shared:.0f} workers\n")
    print(table([simulate(times, options.rows, workers, world) for workers in options.workers]))


if __name__ == "__main__":
    main()
