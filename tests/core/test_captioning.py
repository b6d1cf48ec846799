"""Captions of a tiny BLIP with random weights, against greedy search written out."""

from pathlib import Path

import pytest
import torch
from tiny_networks import BLIP_WORDS, save_blip
from torch import Tensor

from zerocon_core.language.captioning import caption_images, load_captioner

START, STOP = BLIP_WORDS.index("[DEC]"), BLIP_WORDS.index("[SEP]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_blip(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def captioner(folder):
    return load_captioner(folder)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 40, 24, 3, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def greedy(captioner, image: Tensor, prefix: str, limit: int) -> str:
    """argmax of the next token until [SEP] or `limit` new ones, from [DEC] and the prefix."""
    model, preprocess, _ = captioner
    pixels = preprocess((image.numpy() * 255).round().astype("uint8"), return_tensors="pt").pixel_values
    tokens = [START, *(BLIP_WORDS.index(word) for word in prefix.split())]
    for _ in range(limit):
        following = int(model(input_ids=torch.tensor([tokens]), pixel_values=pixels).logits[0, -1].argmax())
        if following == STOP:
            break
        tokens.append(following)
    return " ".join(BLIP_WORDS[token] for token in tokens if not BLIP_WORDS[token].startswith("["))


def test_a_prefix_that_leaves_no_room(captioner, images):
    with pytest.raises(ValueError, match="prefix is 6[0-9] tokens long, and this captioner continues at most 24"):
        caption_images(*captioner, images, "red " * 60)


@pytest.mark.parametrize("prefix", ["", "a red"])
@pytest.mark.parametrize("limit", [1, 6])
def test_captions_are_greedy(captioner, images, prefix, limit):
    said = caption_images(*captioner, images, prefix, limit)
    assert said == [greedy(captioner, image, prefix, limit) for image in images]
    assert all(line.startswith(prefix) for line in said)


def test_captions_see_the_image(captioner, images):
    def said(images: Tensor) -> list[str]:
        return caption_images(*captioner, images, max_tokens=6)

    assert len(set(said(images))) > 1
    assert said(torch.cat([images, torch.zeros_like(images[..., :1])], -1)) == said(images)  # the alpha channel is not seen
    bright = images * 4 - 1.5
    assert said(bright) == said(bright.clamp(0, 1)) != said(images)


def test_model_is_ready_for_inference_in_float32(captioner):
    model, *_ = captioner
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
