"""What of nodes' schemas not every host has."""

from dataclasses import fields

from comfy_api.latest import io

HAS_SPLATS = hasattr(io, "Splat")
HAS_SEARCH_ALIASES = any(field.name == "search_aliases" for field in fields(io.Schema))


def search_aliases(*words: str) -> dict[str, list[str]]:
    """Keyword arguments for io.Schema: other words that the node is found by in the page, where the host lets it have them."""
    return {"search_aliases": list(words)} if HAS_SEARCH_ALIASES else {}
