"""Ways of doing the same, measured by turns in one process, since machines get faster and slower with time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..tables import markdown


@dataclass(frozen=True)
class Timing:
    """Seconds of each way, a round a value."""

    title: str
    seconds: dict[str, list[float]]


def timed(title: str, ways: dict[str, Callable[[], object]], rounds: int, units: dict[str, int]) -> Timing:
    """Seconds a unit of each way, which does `units` (1 where nothing is said) a call. A first call is not counted."""
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            seconds[way].append((time.perf_counter() - began) / units.get(way, 1))
    return Timing(title, seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(timing: Timing, unit: str, against: Sequence[str]) -> str:
    """Markdown: median seconds, the same in units of the way `unit`, and the speed relative to the ways `against`.

    Ratios are taken round by round, and their median is shown.
    """

    def ratio(way: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(timing.seconds[way], timing.seconds[other], strict=True))

    lines = [
        [way, f"{statistics.median(seconds):.4f}", f"{ratio(way, unit):.2f}", *(f"{ratio(other, way):.2f}x" for other in against)]
        for way, seconds in timing.seconds.items()
    ]
    return markdown([timing.title, "seconds", f"in units of {unit}", *(f"speed against {other}" for other in against)], lines)
