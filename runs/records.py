"""Rows of a run that may be stopped at any time: one line of JSON each, under the key of the item that it is about."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

Key = tuple[str | int, ...]
Row = dict[str, Any]

ERROR = "error"
"""Field of the rows of items that failed: what went wrong. Such items are tried again."""


class Keyed(Protocol):
    key: Key


class Records:
    """The rows of `file`. `fields` names the parts of a key, which are fields of its row.

    `settings` is what all rows of a file have in common, as JSON can say it; a file with rows of other settings ends the program,
    and so does one that another run writes to: the file is locked until `close`, the end of a `with`, or that of the process.
    """

    def __init__(self, file: Path, fields: Sequence[str], settings: Row) -> None:
        self.file, self.fields = file, fields
        self.settings: Row = json.loads(json.dumps(settings))
        file.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(file.with_suffix(".lock"), thread_local=False)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            raise SystemExit(f"error: another run is writing to {file}; wait for it or choose another --output") from None
        self.rows: dict[Key, Row] = {}
        for row in read_rows(file):
            if row["settings"] != self.settings:
                self.close()
                raise SystemExit(f"error: {file} holds rows of other settings ({row['settings']}); choose another --output")
            self.rows[tuple(row[field] for field in fields)] = row

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.lock.release()

    def add(self, key: Key, row: Row) -> None:
        row = dict(zip(self.fields, key, strict=True)) | row | {"settings": self.settings}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self.rows[key] = row

    def finished(self, items: Iterable[Keyed]) -> list[Row]:
        """The rows of those items that are done, in the items' order."""
        return [self.rows[item.key] for item in items if self.has(item)]

    def has(self, item: Keyed) -> bool:
        return item.key in self.rows and ERROR not in self.rows[item.key]


def read_rows(file: Path) -> list[Row]:
    """The lines of a file; a last one that was cut off in the middle is removed from it."""
    if not file.exists():
        return []
    whole, newline, rest = file.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(file, len(whole + newline))
    return [json.loads(line) for line in whole.splitlines()]


def write_whole(path: Path, content: bytes) -> None:
    """The file is there with all of `content` or as it was before, whenever this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
