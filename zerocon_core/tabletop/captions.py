"""Scenes in words, and words for solids."""

import numpy as np

from .scene import COLOURS, MATERIALS, PATTERNS, SHAPES, Scene, SceneError, middles

VOCABULARY: tuple[str, ...] = ("a", "and", "on", "floor", *COLOURS, *SHAPES, *MATERIALS, *PATTERNS)


def caption(scene: Scene) -> str:
    """The scene in words, such as "a shiny red ball and a matte blue cube on a checked floor": solids from left to right."""
    solids = " and ".join(f"a {scene.solids[number]}" for number in left_to_right(scene))
    return f"{solids} on a {scene.floor.pattern} floor"


def left_to_right(scene: Scene) -> list[int]:
    """The numbers of the solids as the camera sees them."""
    return [int(number) for number in np.argsort(middles(scene.solids, scene.camera)[0])]


def solid_named(scene: Scene, name: str) -> int:
    """The number of the one solid of which all words of `name` are said, such as "ball", "the red ball" or "shiny"."""
    words = [word for word in name.lower().split() if word not in ("a", "the")]
    said = [{s.colour, s.shape, s.material} for s in scene.solids]
    fitting = [number for number, of_solid in enumerate(said) if words and of_solid.issuperset(words)]
    if len(fitting) == 1:
        return fitting[0]
    count = "Several solids are" if fitting else "No solid is"
    there = " and ".join(f"a {s}" for s in scene.solids)
    raise SceneError(f"{count} called {name!r} in this scene: there is {there}.")
