"""What is asked for: a row a picture, from a table or a folder."""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
NAME, PICTURE = "name", "picture"


class TableError(ValueError):
    """A table that cannot be run as it is. The message says where, and what to do."""


@dataclass(frozen=True)
class Entry:
    """A row of the table under the name that its results get."""

    name: str
    values: dict[str, Any]


def read_entries(path: Path) -> list[Entry]:
    """The rows of a .csv, .jsonl or .parquet file, or the pictures of a folder and what is below it.

    A row is named by its column `name`, else by its picture's file name without the ending. Raises TableError.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        rows = [{NAME: file.relative_to(path).with_suffix("").as_posix(), PICTURE: str(file)} for file in found]
        if not rows:
            raise TableError(f"the folder {path} holds no picture ({', '.join(sorted(PICTURES))})")
    elif path.is_file():
        rows = read_table(path)
        if not rows:
            raise TableError(f"{path} has no rows")
    else:
        raise TableError(f"there is no {path}; give a table (.csv, .jsonl, .parquet) or a folder of pictures")
    entries = [Entry(name_of(row, place, path), row) for place, row in enumerate(rows, 1)]
    check_names(entries, path)
    return entries


def read_table(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin theirs with a mark
            return check_csv(csv.DictReader(file), path)
    if kind in (".jsonl", ".ndjson"):
        return [json_row(line, place, path) for place, line in enumerate(path.read_text("utf-8").splitlines(), 1) if line.strip()]
    if kind == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise TableError(f"{path.name}: Parquet needs the package pyarrow (pip install pyarrow), or save it as CSV") from None
        return parquet.read_table(path).to_pylist()
    raise TableError(f"{path.name} is no table that is read here; use .csv, .jsonl or .parquet")


def check_csv(rows: Iterable[dict], path: Path) -> list[dict[str, Any]]:
    checked = []
    for place, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise TableError(f"row {place} of {path.name} has not as many cells as there are columns; quote cells with commas")
        checked.append(row)
    return checked


def json_row(line: str, place: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TableError(f"line {place} of {path.name} is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise TableError(f"line {place} of {path.name} is no object with the columns as its keys")
    return row


def name_of(row: dict[str, Any], place: int, path: Path) -> str:
    """Raises TableError for a row without one, or with one that would leave the output folder."""
    given = row.get(NAME)
    name = str(given) if given not in (None, "") else Path(str(row.get(PICTURE) or "")).stem
    if not name:
        raise TableError(f"row {place} of {path.name} has neither a {NAME} nor a {PICTURE}; add one of these columns")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise TableError(f"row {place} of {path.name} is named {name!r}, which is no name for a file below the output folder")
    return name


def check_names(entries: list[Entry], path: Path) -> None:
    """Also where only the case differs, which some file systems do not tell apart."""
    twice = [name for name, count in Counter(entry.name.casefold() for entry in entries).items() if count > 1]
    if twice:
        few = ", ".join(sorted(twice)[:3])
        raise TableError(
            f"{path.name} has {len(twice)} names that stand in several rows, such as {few}; give each its own {NAME}"
        )


def check_columns(entries: list[Entry], wanted: Iterable[str], path: Path) -> None:
    """Raises TableError where a column that is wanted is missing, in any row."""
    for column in wanted:
        lacking = [entry.name for entry in entries if column not in entry.values]
        if lacking:
            has = ", ".join(sorted({key for entry in entries for key in entry.values}))
            where = "" if len(lacking) == len(entries) else f" in {len(lacking)} rows, such as {lacking[0]}"
            raise TableError(f"{path.name} has no column {column}{where}; it has {has}")
