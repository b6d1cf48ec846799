"""Draw the pictures of the docs: scenes, and true edits with all that they change.

python -m training.tabletop.sheets
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zerocon_pack.zerocon_core.tabletop import edits, render, sampling

from ..common import ROOT

SIDE = 192
COLUMNS, ROWS = 6, 3
EDITED = 4  # the number of the held-out scene of two solids that the edits start from

Picture = NDArray[np.float32]


def scenes() -> Picture:
    """The first held-out scenes, in rows."""
    pictures = [render.render(s, SIDE) for s in sampling.held_out_scenes(COLUMNS * ROWS)]
    return np.concatenate([np.concatenate(pictures[i : i + COLUMNS], axis=1) for i in range(0, len(pictures), COLUMNS)])


def true_edits() -> Picture:
    """A scene and five edits of its ball; below each, where it differs from the scene, and first where the solids are."""
    scene = sampling.held_out_scenes(EDITED + 1, solids=2)[EDITED]
    changed = [edits.change(scene, "ball", word) for word in ("blue", "cube", "matte")]
    changed += [edits.change(scene, "floor", "plain"), edits.remove(scene, "ball")]
    before, *after = (render.render(s, SIDE) for s in (scene, *changed))
    masks = [render.solid_masks(scene, SIDE).sum(axis=0), *(render.change_mask(before, picture) for picture in after)]
    lower = np.concatenate(masks, axis=1)[..., None].repeat(3, axis=2)
    return np.concatenate([np.concatenate([before, *after], axis=1), lower])


def main() -> None:
    """Write both pictures."""
    for name, picture in (("scenes", scenes()), ("edits", true_edits())):
        path = ROOT / "docs" / "images" / f"tabletop_{name}.png"
        Image.fromarray(np.round(picture * 255.0).astype(np.uint8)).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
