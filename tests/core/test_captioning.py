"""Captions of a tiny BLIP with random weights, against greedy search written out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from zerocon_core.language.captioning import caption_images, load_captioner

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
WORDS = "a the cat dog bird red green blue on under mat hat with and of in".split()
START, STOP = SPECIAL.index("[DEC]"), SPECIAL.index("[SEP]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {
        "vocab_size": len(SPECIAL + WORDS), "encoder_hidden_size": 16, "bos_token_id": START, "sep_token_id": STOP,
        "eos_token_id": STOP, "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 1.0,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=size | text, vision_config=size | vision))
    model.half().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder):
    return load_captioner(folder)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 40, 24, 3, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def greedy(captioner, image: Tensor, prefix: str, limit: int) -> str:
    """argmax of the next token until [SEP] or `limit` new ones, from [DEC] and the prefix."""
    model, processor = captioner
    pixels = processor.image_processor((image.numpy() * 255).round().astype("uint8"), return_tensors="pt").pixel_values
    words = SPECIAL + WORDS
    tokens = [START, *(words.index(word) for word in prefix.split())]
    for _ in range(limit):
        following = int(model(input_ids=torch.tensor([tokens]), pixel_values=pixels).logits[0, -1].argmax())
        if following == STOP:
            break
        tokens.append(following)
    return " ".join(words[token] for token in tokens if words[token] not in SPECIAL)


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
    model, _ = captioner
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"config\.json is missing"):
        load_captioner(tmp_path / "nothing")


def test_a_damaged_folder_is_an_error(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="cannot be read"):
        load_captioner(tmp_path)
