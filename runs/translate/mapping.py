"""Which column of the table goes to which input of the workflow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .table import PICTURE, TableError

Graph = dict[str, dict]
PICTURE_LOADERS = ("LoadImage", "LoadImageOutput")


@dataclass(frozen=True)
class Place:
    """An input of a node; without `field`, the node itself gives way to a Load Image with the picture of the column."""

    node: str
    field: str | None

    def __str__(self) -> str:
        return self.node + (f".{self.field}" if self.field else "")


Mapped = dict[Place, str]
"""Columns by the places that they go to."""


def parse_place(text: str, graph: Graph) -> Place:
    """Of "8.edit_to" or "3". Raises TableError where the workflow has no such place."""
    node, _, field = text.partition(".")
    if node not in graph:
        raise TableError(f"the workflow has no node {node}; it has {', '.join(f'{n} ({title(graph[n])})' for n in graph)}")
    if field and field not in graph[node]["inputs"]:
        raise TableError(f"node {node} ({title(graph[node])}) has no input {field}; it has {', '.join(graph[node]['inputs'])}")
    return Place(node, field or None)


def parse_set(texts: list[str], graph: Graph) -> Mapped:
    """Of "8.edit_to=target": column target goes to input edit_to of node 8."""
    return {parse_place(place, graph): column for place, column in map(split, texts)}


def parse_fix(texts: list[str], graph: Graph) -> dict[Place, Any]:
    """Of "12.steps=8": a value for all rows, as JSON or else as text."""
    fixed = {}
    for place, text in map(split, texts):
        try:
            fixed[parse_place(place, graph)] = json.loads(text)
        except ValueError:
            fixed[parse_place(place, graph)] = text
    return fixed


def split(text: str) -> tuple[str, str]:
    place, equals, value = text.partition("=")
    if not equals:
        raise TableError(f"{text} is to be NODE.input=value, such as 8.edit_to=target")
    return place, value


def default_mapping(graph: Graph, columns: set[str], taken: Mapping[Place, object]) -> Mapped:
    """What columns of the usual names mean in workflows like ours, for places that nothing else was said about."""
    usually = {Place(node, field): column for node, content in graph.items() for field, column in usual(content).items()}
    return {
        place: column
        for place, column in usually.items()
        if column in columns and place not in taken and Place(place.node, None) not in taken
    }


def usual(node: dict) -> dict[str | None, str]:
    """By input, the column that a node would take. Only a caption replaces what a link brings."""
    kind, inputs = node["class_type"], node["inputs"]
    if kind in PICTURE_LOADERS:
        return {"image": PICTURE}
    if kind.startswith("ZeroCon") and kind.endswith("Scene"):  # a drawn example gives way to the picture of the row
        return {None: PICTURE}
    fields = {
        "ZeroConEditDirection": {"edit_from": "edit_from", "edit_to": "edit_to", "caption": "caption"},
        "StringReplace": {"find": "edit_from", "replace": "edit_to"},
        "CLIPTextEncode": {"text": title(node).lower()} if title(node) in ("Source", "Target", "Negative") else {},
    }.get(kind, {})
    return {field: column for field, column in fields.items() if column == "caption" or not isinstance(inputs.get(field), list)}


def title(node: dict) -> str:
    return node.get("_meta", {}).get("title", node["class_type"])


def fitting(value: Any, sample: Any, where: str) -> Any:
    """A table's value as the kind of number that the workflow has in this place. Raises TableError."""
    if isinstance(value, str) and isinstance(sample, (bool, int, float)):
        try:
            return type(sample)(json.loads(value))
        except (ValueError, TypeError):
            raise TableError(f"{where} takes a {type(sample).__name__}, the table says {value!r}") from None
    return value
