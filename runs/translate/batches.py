"""Rows that only differ in their picture, run as one batch."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ..engine import Engine, Item
from ..records import ERROR, Row
from ..servers.job import Server
from .rows import Translation, alike, grouped
from .table import Entry


def in_batches(engine: Engine, translation: Translation, entries: Mapping[str, Entry], size: int) -> Engine:
    """The same items, up to `size` at a time. Those of a batch that failed are run again alone, so that each fails by itself."""

    def together(group: Sequence[Entry], server: Server) -> Row:
        return {"rows": translation.run(group, server)}

    def run(items: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        item_of = {item.key[0]: item for item in items}
        groups = grouped([entries[name] for name in item_of], size, alike(translation))
        batches = {group[0].name: [item_of[entry.name] for entry in group] for group in groups}
        alone = []
        for batch, row in engine([Item((group[0].name,), partial(together, group)) for group in groups]):
            members = batches[batch.key[0]]
            if ERROR not in row:
                yield from zip(members, row["rows"], strict=True)
            elif len(members) == 1:
                yield members[0], row
            else:
                alone += members
        if alone:
            yield from engine(alone)

    return run
