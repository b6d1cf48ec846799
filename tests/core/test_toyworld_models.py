"""The shipped classifier and captioner read pictures that training never saw."""

import pytest
import torch

from zerocon_core.language.captioning import caption_images, load_captioner
from zerocon_core.toyworld import classifier, weights
from zerocon_core.toyworld import scene as toy

SCENES = toy.held_out_scenes(200)
IMAGES = torch.stack([torch.from_numpy(toy.render(s)) for s in SCENES])


def test_attributes_are_read_right():
    read = classifier.classify(IMAGES)
    for attribute in ("colour", "shape", "pattern"):
        right = sum(a == getattr(s, attribute) for a, s in zip(getattr(read, attribute), SCENES, strict=True))
        assert right / len(SCENES) >= 0.99, attribute


def test_pose_is_read_to_a_pixel():
    pose = torch.tensor([(s.pose.cx, s.pose.cy, s.pose.radius) for s in SCENES])
    assert ((classifier.classify(IMAGES).pose - pose).abs().mean(dim=0) < 1 / 64).all()


def test_attributes_survive_another_size():
    larger = torch.stack([torch.from_numpy(toy.render(s, 128)) for s in SCENES[:50]])
    read = classifier.classify(larger)
    assert sum(a == s.shape for a, s in zip(read.shape, SCENES[:50], strict=True)) >= 49


def test_captions_are_exact():
    said = caption_images(*load_captioner(weights.CAPTIONER_FOLDER), IMAGES)
    assert sum(line == toy.caption(s) for line, s in zip(said, SCENES, strict=True)) / len(SCENES) >= 0.97


@pytest.mark.parametrize(("content", "state"), [(None, "missing"), (b"\x08\0\0\0\0\0\0\0garbage!", "damaged")])
def test_a_bad_file_is_named_with_its_remedy(monkeypatch, tmp_path, content, state):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "classifier.safetensors").write_bytes(content)
    with pytest.raises(weights.WeightsError, match=f"classifier.safetensors is {state}: restore it with `git checkout"):
        classifier.load_classifier()
