import numpy as np
from PIL import Image

from tools.demo import PICTURE, SCENE
from zerocon_core.toyworld.scene import render


def test_the_bundled_picture_shows_the_scene_that_the_demo_measures_against():
    assert np.array_equal(np.asarray(Image.open(PICTURE)), (render(SCENE) * 255).round().astype(np.uint8))
