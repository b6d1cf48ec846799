"""Captions from a BLIP model (Li et al. 2022), loaded from a folder in transformers' format."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor

from ..pretrained import load_network, load_part, load_tokenizer


def load_captioner(folder: str | Path) -> tuple[BlipForConditionalGeneration, BlipImageProcessor, BertTokenizer]:
    """From a local `folder`: the model (float32, on the CPU), what makes its pixels of images, and what its tokens of words.

    Raises OSError if the folder holds no whole BLIP captioner.
    """
    model = load_network(BlipForConditionalGeneration, folder, "captioner")
    preprocess = load_part(BlipImageProcessor, folder, "captioner")
    return model, preprocess, load_tokenizer(BertTokenizer, folder, "captioner", model)


def caption_images(
    model: BlipForConditionalGeneration,
    preprocess: BlipImageProcessor,
    tokenizer: BertTokenizer,
    images: Tensor,
    prefix: str = "",
    max_tokens: int = 40,
) -> list[str]:
    """One caption an image, by greedy search. `images` is (B, H, W, 3) in [0, 1]; a `prefix` is continued.

    Raises ValueError for a prefix that leaves the captioner no room.
    """
    pixels = [(image.clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images[..., :3]]
    inputs = preprocess(pixels, return_tensors="pt")
    if prefix:
        inputs.update(tokenizer([prefix] * len(pixels), return_token_type_ids=False, return_tensors="pt"))
        text: Any = model.config.text_config
        taken, room = inputs["input_ids"].shape[1], text.max_position_embeddings - max_tokens
        if taken > room:
            raise ValueError(f"prefix is {taken} tokens long, and this captioner continues at most {max(room, 0)}; shorten it")
    tokens = model.generate(**inputs.to(model.device), max_new_tokens=max_tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
