"""All graphs of the fuzz: a sound graph each with one bad value in it, and the sound graphs on other families of models."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .bad import Bad, bad_values
from .sound import Values, other_families, pack_nodes, sound_graph

BAD = "bad value"


class Trial(NamedTuple):
    """A graph to run, and what is odd about it."""

    node: str
    place: str
    """The input with the bad value, or "" for a graph that is whole."""
    what: str
    graph: dict[str, dict]
    values: Values
    forged: bool = False

    def __str__(self) -> str:
        return f"{self.node}.{self.place} = {self.what}"


def with_bad(graph: dict[str, dict], place: str, bad: Bad, takes_lists: bool) -> dict[str, dict]:
    graph = copy.deepcopy(graph)
    if not bad.linked and not bad.forged:
        graph["node"]["inputs"][place] = bad.value
        return graph
    kind = "TestList" if takes_lists and isinstance(bad.value, list) and not bad.value else "TestValue"
    graph[BAD] = {"class_type": kind, "inputs": {"key": BAD}}
    graph["node"]["inputs"][place] = [BAD, 0]
    return graph


def trials(values: Values, only: Sequence[str] = ()) -> Iterator[Trial]:
    """All of them, or those of some nodes."""
    chosen = only or [*pack_nodes()]
    yield from with_bad_values(values, chosen)
    yield from with_other_models(values, chosen)


def with_bad_values(values: Values, chosen: Sequence[str]) -> Iterator[Trial]:
    for node_id in chosen:
        schema, graph = pack_nodes()[node_id].GET_SCHEMA(), sound_graph(node_id)
        yield Trial(node_id, "", "as it is", graph, values)
        for declared in schema.inputs:
            for bad in bad_values(declared, values, schema.is_input_list):
                changed = with_bad(graph, declared.id, bad, schema.is_input_list)
                yield Trial(node_id, declared.id, bad.name, changed, values | {BAD: bad.value}, bad.forged)


def with_other_models(values: Values, chosen: Sequence[str]) -> Iterator[Trial]:
    for family, own in other_families(values).items():
        for node_id in chosen:
            yield Trial(node_id, "", family, sound_graph(node_id), own)
