"""A row of the table, run on a server. Pictures are read and written here, by the driver alone."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..engine import Item
from ..records import Row, write_whole
from ..servers.job import Answer, Job, Server
from .graph import TEXTS, Workflow
from .mapping import title
from .table import Entry


class PictureError(ValueError):
    """A picture that is not there or cannot be read, or a workflow that gives other pictures than it should."""


@dataclass(frozen=True)
class Translation:
    """A workflow over entries whose pictures lie below `folder`, or where they say; results go below `output`."""

    workflow: Workflow
    folder: Path
    output: Path

    def item(self, entry: Entry) -> Item:
        return Item((entry.name, self.asked(entry)), partial(self.run_one, entry))

    def asked(self, entry: Entry) -> str:
        """A digest of what the entry asks for, so that a changed row is run again; of its picture path and size count."""
        path = self.picture(entry)
        size = path.stat().st_size if path.is_file() else 0
        asked = [[str(place), str(entry.values[column])] for place, column in self.workflow.mapped.items()]
        return hashlib.sha256(json.dumps([*sorted(asked), size]).encode()).hexdigest()[:16]

    def picture(self, entry: Entry) -> Path:
        return self.folder / str(entry.values[self.workflow.mapped[self.workflow.picture]])

    def run_one(self, entry: Entry, server: Server) -> Row:
        [row] = self.run([entry], server)
        return row

    def run(self, entries: Sequence[Entry], server: Server) -> list[Row]:
        """The rows of entries that only differ in their pictures. Raises what the server raises, and PictureError."""
        pictures = [read_picture(self.picture(entry)) for entry in entries]
        names = [f"{hashlib.sha256(content).hexdigest()[:16]}.image" for content in pictures]
        graph = self.workflow.filled(entries[0].values, names, entries[0].name)
        answer = server.perform(Job(graph, dict(zip(names, pictures, strict=True))))
        results = {folder: share(answer.images.get(node, []), len(entries)) for folder, node in self.workflow.kept.items()}
        figures = self.metrics(answer)
        return [
            {
                "picture": str(self.picture(entry)), "asked for": {key: entry.values[key] for key in self.workflow.columns},
                "results": {folder: self.save(folder, entry.name, images[place]) for folder, images in results.items()},
                "texts": texts(graph, answer, place), "metrics": figures[place] if figures else {},
                "seconds": round(answer.seconds / len(entries), 3), "together": len(entries), "server": server.name,
            }
            for place, entry in enumerate(entries)
        ]  # fmt: skip

    def metrics(self, answer: Answer) -> list[dict[str, Any]]:
        node = self.workflow.metrics
        return json.loads(answer.outputs[node]["text"][0])["images"] if node else []

    def save(self, folder: str, name: str, images: Sequence[bytes]) -> list[str]:
        """Writes the images of one row; returns where, from the output folder on."""
        paths = [Path(folder) / (name + (f".{number}" if number > 1 else "") + ".png") for number in range(1, len(images) + 1)]
        for path, content in zip(paths, images, strict=True):
            write_whole(self.output / path, content)
        return [path.as_posix() for path in paths]


def read_picture(path: Path) -> bytes:
    """The bytes of a picture that can be read to its end. The server would fill up one that is cut off."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        return content
    except FileNotFoundError:
        raise PictureError(f"there is no picture {path}") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} cannot be read as a picture ({error})") from None


def share(images: Sequence[bytes], count: int) -> list[Sequence[bytes]]:
    """Images of each of `count` rows: one row may have several. Raises PictureError when they do not come out even."""
    if not images or (count > 1 and len(images) != count):
        raise PictureError(f"the workflow gave {len(images)} images for {count} pictures")
    return [images] if count == 1 else [[image] for image in images]


def texts(graph: dict, answer: Answer, place: int) -> dict[str, str]:
    """What the workflow says about one of its pictures, by the title of the node that shows it; the same words once."""
    shown = {title(graph[node]): answer.outputs[node]["text"] for node in graph if is_told(graph, node, answer.outputs)}
    said = {name: str(lines[place] if place < len(lines) else lines[-1]) for name, lines in shown.items() if lines}
    return {name: words for words, name in {words: name for name, words in said.items()}.items()}


def is_told(graph: dict, node: str, outputs: dict) -> bool:
    return "text" in outputs.get(node, {}) and graph[node]["class_type"] in TEXTS and node != "metrics_shown"


def alike(translation: Translation) -> Callable[[Entry], tuple | None]:
    """What entries must have in common to be run as one: all but the picture, and its size. None for a picture that has none."""
    workflow = translation.workflow

    def common(entry: Entry) -> tuple | None:
        try:
            with Image.open(translation.picture(entry)) as image:
                return (image.size, *(str(entry.values[column]) for column in workflow.columns))
        except (OSError, ValueError):
            return None

    return common


def grouped(entries: Iterable[Entry], size: int, common: Callable[[Entry], tuple | None]) -> list[list[Entry]]:
    """At most `size` entries each that have something in common, in the order of their first ones."""
    groups: list[list[Entry]] = []
    open_groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        key = common(entry)
        group = open_groups.get(key) if key is not None else None
        if group is None or len(group) == size:
            group = []
            groups.append(group)
            if key is not None:
                open_groups[key] = group
        group.append(entry)
    return groups
