"""The figures of a batch of edits, with what they mean."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Value = float | None


@dataclass(frozen=True)
class Metric:
    """`factor` is the power of ten that papers multiply the figure with in their tables."""

    title: str
    better: Literal["higher", "lower"]
    factor: float = 1.0


METRICS: dict[str, Metric] = {
    "structure": Metric("structure distance x10^3", "lower", 1e3),
    "psnr": Metric("PSNR, dB", "higher"),
    "ssim": Metric("SSIM x10^2", "higher", 1e2),
    "mse": Metric("MSE x10^4", "lower", 1e4),
    "lpips": Metric("LPIPS x10^3", "lower", 1e3),
    "background_psnr": Metric("background PSNR, dB", "higher"),
    "background_ssim": Metric("background SSIM x10^2", "higher", 1e2),
    "background_mse": Metric("background MSE x10^4", "lower", 1e4),
    "background_lpips": Metric("background LPIPS x10^3", "lower", 1e3),
    "clip_score": Metric("CLIP score", "higher"),
    "clip_score_edited": Metric("CLIP score inside the mask", "higher"),
    "clip_accuracy": Metric("CLIP accuracy", "higher"),
    "clip_direction": Metric("CLIP direction", "higher"),
    "clip_r_precision": Metric("CLIP-R-precision", "higher"),
    "fid": Metric("FID", "lower"),
}


@dataclass
class Report:
    """`values` holds one list a metric with an entry an image: None where the metric is undefined for that image.

    `batch` holds the metrics that have one figure for all images together. How many these are is shown next to it.
    """

    values: dict[str, list[Value]] = field(default_factory=dict)
    batch: dict[str, float] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, part: str, network: str, figures: Mapping[str, list[Value] | float]) -> None:
        """More columns and figures of the whole batch, and what looked at the images for them."""
        self.networks[part] = network
        for key, figure in figures.items():
            if isinstance(figure, float):
                self.batch[key] = figure
            else:
                self.values[key] = figure

    def count(self) -> int:
        """Of images."""
        return len(next(iter(self.values.values())))

    def means(self) -> dict[str, Value]:
        return {key: mean(column) for key, column in self.values.items()}

    def to_json(self) -> str:
        """Plain figures, not scaled. An infinite PSNR is the string "inf", which JSON has no number for."""
        columns = {key: [_number(value) for value in column] for key, column in self.values.items()}
        images = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        means = {key: _number(value) for key, value in self.means().items()}
        batch = {"batch": {"images": len(images), **self.batch}} if self.batch else {}
        record = {"images": images, "mean": means, **batch, "networks": self.networks, "left_out": self.left_out}
        return json.dumps(record, indent=1)

    def table(self) -> str:
        """Markdown in the papers' units, a row a metric, the mean before the images; then the networks and what is missing.

        A figure of the whole batch stands where the others have their mean.
        """
        count = self.count()
        head = ["metric", "value"] if count == 1 else ["metric", "mean", *(str(i + 1) for i in range(count))]
        lines = [row(*head), row(*["---"] * len(head))]
        for key, column in self.values.items():
            cells = [cell(key, value) for value in column]
            lines.append(row(title(key), *(cells if count == 1 else [cell(key, mean(column)), *cells])))
        lines += [row(*figure, *[""] * count) for figure in self._batch()]
        return "\n".join([*lines, "", *self._notes()]).strip()

    def text(self) -> str:
        """A line a metric with its mean, for places that show no tables."""
        lines = [f"{title(key)}  {cell(key, mean(column))}" for key, column in self.values.items()]
        lines += ["  ".join(figure) for figure in self._batch()]
        return "\n".join([*lines, *self._notes()])

    def _batch(self) -> list[tuple[str, str]]:
        return [(f"{title(key)} (n = {self.count()})", cell(key, value)) for key, value in self.batch.items()]

    def _notes(self) -> list[str]:
        networks = [f"{part}: {network}" for part, network in self.networks.items()]
        return networks + [f"left out: {reason}" for reason in self.left_out]


def mean(values: Sequence[Value]) -> Value:
    """Of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def title(key: str) -> str:
    """What a metric is called in a table, with an arrow at which way is better."""
    return f"{METRICS[key].title} {'↑' if METRICS[key].better == 'higher' else '↓'}"


def cell(key: str, value: Value) -> str:
    """A figure in the papers' units."""
    return "-" if value is None else f"{value * METRICS[key].factor:.2f}"


def row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def _number(value: Value) -> Value | str:
    return str(value) if value is not None and math.isinf(value) else value
