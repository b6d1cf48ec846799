"""The same scene with one thing changed: what an edit of its picture ought to show."""

from dataclasses import replace
from typing import Any

import numpy as np

from .captions import solid_named
from .sampling import with_another
from .scene import COLOURS, MATERIALS, PATTERNS, SHAPES, Scene, SceneError, check_word

FIELDS = {"colour": COLOURS, "shape": SHAPES, "material": MATERIALS}


def change(scene: Scene, name: str, word: str) -> Scene:
    """The scene in which the solid called `name` is `word` as to colour, shape or material; or a floor of pattern `word`."""
    if name.removeprefix("the ") == "floor":
        pattern = check_word("floor", word, PATTERNS)
        return replace(scene, floor=replace(scene.floor, pattern=pattern))
    check_word("colour, shape or material", word, (*COLOURS, *SHAPES, *MATERIALS))
    field = next(field for field, words in FIELDS.items() if word in words)
    return _with_solid(scene, solid_named(scene, name), **{field: word})


def remove(scene: Scene, name: str) -> Scene:
    """The scene without the solid called `name`."""
    number = solid_named(scene, name)
    return replace(scene, solids=scene.solids[:number] + scene.solids[number + 1 :])


def add(scene: Scene, seed: int) -> Scene:
    """The scene with a second solid, of another colour and shape than the first; `seed` says which and where."""
    if len(scene.solids) == 2:
        raise SceneError("A scene has one or two solids: remove one before adding another.")
    added = with_another(scene, np.random.default_rng(seed))
    if added is None:
        raise SceneError("There is no room for another solid: the one that is there is too large or too far in the middle.")
    return added


def _with_solid(scene: Scene, number: int, **fields: Any) -> Scene:
    solids = list(scene.solids)
    solids[number] = replace(solids[number], **fields)
    return replace(scene, solids=tuple(solids))
