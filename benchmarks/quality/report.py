"""Curves, the means over their edits, and their table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from runs.records import Row

from ..tables import markdown

KINDS = ("colour", "shape", "pattern", "identity")
SHARES = ("success", *KINDS, "others kept", "pose kept")
LEVELS = ("background", "bystander", "truth", "identity background", "seconds")


@dataclass(frozen=True)
class Curve:
    """A method at several strengths, from the gentlest to the strongest edit. Its records have the `repr` of the method."""

    name: str
    over: str
    points: dict[float | str | tuple, Callable]

    def thinned(self) -> "Curve":
        """With every second strength."""
        return replace(self, points=dict(list(self.points.items())[::2]))


def rows(curves: list[Curve], lines: list[Row], kinds: Iterable[str] = KINDS) -> list[Row]:
    """A row a curve and strength, over the edits of some kinds."""
    made = []
    for curve in curves:
        for value, method in curve.points.items():
            done = [line for line in lines if line["setting"] == repr(method)]
            records = [record for line in done for record in line["edits"] if record["kind"] in kinds]
            if records:
                value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
                masked = getattr(method, "mask", None) is not None
                made.append({"method": curve.name, "over": curve.over, "value": value, "masked": masked} | figures(records))
                made[-1]["seconds"] = sum(line["seconds"] for line in done) / sum(line["count"] for line in done)
    return made


def figures(records: list[Row]) -> dict[str, float | int | None]:
    """Means over the edits, and over the identities for what is named after them; None without any."""
    edits = [record for record in records if record["kind"] != "identity"]

    def mean(column: str, part: list[Row]) -> float | None:
        return float(np.mean([record[column] for record in part])) if part else None

    by_kind = {kind: [record for record in records if record["kind"] == kind] for kind in KINDS}
    columns = ("success", "others kept", "pose kept", "background", "bystander", "truth")
    return {
        "edits": len(records),
        **{column: mean(column, edits) for column in columns},
        **{kind: mean("success", part) for kind, part in by_kind.items()},
        "identity background": mean("background", by_kind["identity"]),
    }


def table(made: list[Row]) -> str:
    """Markdown; shares in percent, PSNR in dB, seconds of one core an edit. Columns without any value are left out."""
    shares, levels = ([c for c in columns if any(row[c] is not None for row in made)] for columns in (SHARES, LEVELS))
    best, without_masks = front(made), front([row for row in made if not row["masked"]])
    lines = []
    for row in made:
        value = f"{row['value']:g}" if isinstance(row["value"], float | int) else row["value"]
        setting = f"{row['over']} {value}" if row["over"] != "-" else "-"
        cells = [row["method"], setting, *(f"{row[c]:.0%}" for c in shares), *(f"{row[c]:.1f}" for c in levels)]
        lines.append([*cells, "yes" if row in best else "but for masks" if row in without_masks else ""])
    return markdown(["method", "over", *shares, *levels, "front"], lines)


def front(made: list[Row]) -> list[Row]:
    """The rows that no other row beats in one of success and background without losing in the other: the Pareto front."""

    def beats(a: Row, b: Row) -> bool:
        (success, background), (other_success, other_background) = ((row["success"], row["background"]) for row in (a, b))
        no_worse = success >= other_success and background >= other_background
        return no_worse and (success, background) != (other_success, other_background)

    return [row for row in made if not any(beats(other, row) for other in made)]
