"""What became of a graph with a bad value."""

import contextlib
import logging
import math
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import torch
from in_process import ROOT, GraphRun, GraphRunner

FINE, REFUSED, HOST, CANCELLED = "fine", "refused in a sentence", "refused by the host", "cancelled when asked"
TRACEBACK, SILENT, DEAF = "TRACEBACK from inside", "NOT FINITE without a word", "DEAF to cancel"
DEFECTS = (TRACEBACK, SILENT, DEAF)

PATIENCE, LIMIT = 5, 60
"""Seconds of computing until a graph is cancelled, and until it must have ended. Not of waiting: the machine may be shared."""


class Verdict(NamedTuple):
    kind: str
    text: str = ""
    """What was said, or where it broke."""


class Deaf(BaseException):
    """Raised into a graph that runs on."""


class Errors(logging.Handler):
    """What nodes and the host tell the log: warnings of the pack, and the tracebacks of nodes that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("zerocon_pack") and record.levelno == logging.WARNING:
            self.warnings.append(text)
        elif "Traceback (most recent call last)" in text:
            self.tracebacks.append(text)


@contextlib.contextmanager
def listening() -> Iterator[Errors]:
    errors, root = Errors(), logging.getLogger()
    before, root.handlers = root.handlers, [errors]
    try:
        yield errors
    finally:
        root.handlers = before


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Cancels as a user would, and breaks in where that is not heard."""
    asked = []

    def lose_patience(*_: Any) -> None:
        if asked:
            raise Deaf
        asked.append(comfy.model_management.interrupt_current_processing())

    previous = signal.signal(signal.SIGPROF, lose_patience)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE, LIMIT - PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        comfy.model_management.interrupt_current_processing(False)


def not_finite(value: Any) -> bool:
    """Whether a value that a node put out holds NaN or infinity anywhere."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and not bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return any(map(not_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


PLACE = re.compile(r'File "(?P<file>.+?)", line \d+, in (?P<function>\w+)\n\s+(?P<code>.*)')
NAMING = {"execute_or_refuse", "refusing"}
"""What puts the node's name before a refusal; of itself it refuses nothing."""


def raised_by_the_pack(trace: str) -> bool:
    """Whether one of the errors that led to each other was raised by a `raise` of the pack."""
    blocks = trace.split("Traceback (most recent call last)")[1:]
    raised = [list(PLACE.finditer(block))[-1] for block in blocks if PLACE.search(block)]
    return any(
        Path(place["file"]).is_relative_to(ROOT) and place["code"].startswith("raise ") and place["function"] not in NAMING
        for place in raised
    )


def where(trace: str) -> str:
    """Error and place of the innermost of the errors that led to each other."""
    block = trace.split("Traceback (most recent call last)")[1]
    place = list(PLACE.finditer(block))[-1]
    error = block[place.end() :].strip().splitlines()
    said = next((line for line in error if line[:1].isalpha()), "")
    return f"{said[:140]} [{Path(place['file']).name} {place['function']}: {place['code'][:80]}]"


def judged(run: GraphRun, errors: Errors) -> Verdict:
    if run.success:
        bad = [name for name, value in run.captured.items() if not_finite(value)]
        return Verdict(SILENT, ", ".join(bad)) if bad and not errors.warnings else Verdict(FINE)
    if not run.statuses:
        return Verdict(HOST, run.error.splitlines()[0])
    if "execution_interrupted" in run.statuses:
        return Verdict(CANCELLED)
    trace, said = errors.tracebacks[-1], run.error.strip()
    if raised_by_the_pack(trace) and "\n" not in said:
        return Verdict(REFUSED, said)
    return Verdict(TRACEBACK, where(trace))


def try_graph(runner: GraphRunner, graph: dict[str, dict], values: dict[str, Any]) -> Verdict:
    """Runs a graph, cancelled when it takes long."""
    with listening() as errors:
        try:
            with impatient():
                return judged(runner(graph, values), errors)
        except Deaf:
            return Verdict(DEAF, f"for {LIMIT} s")
        except Exception:
            return Verdict(TRACEBACK, f"through the host: {where(traceback.format_exc())}")
