"""Captions from a BLIP model (Li et al. 2022), loaded from a folder in transformers' format."""

from pathlib import Path

from torch import Tensor
from transformers import BertTokenizerFast, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from ..pretrained import load_network, load_part, load_tokenizer


def load_captioner(folder: str | Path) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Model (float32, on the CPU) and processor from a local `folder`. Raises OSError if that holds no whole BLIP captioner."""
    model = load_network(BlipForConditionalGeneration, folder, "captioner")
    images = load_part(BlipImageProcessor, folder, "captioner")
    tokenizer = load_tokenizer(BertTokenizerFast, folder, "captioner", model.config.text_config.vocab_size)
    return model, BlipProcessor(images, tokenizer)


def caption_images(
    model: BlipForConditionalGeneration, processor: BlipProcessor, images: Tensor, prefix: str = "", max_tokens: int = 40
) -> list[str]:
    """One caption an image, by greedy search. `images` is (B, H, W, 3) in [0, 1]; a `prefix` is continued."""
    pixels = [(image.clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images[..., :3]]
    inputs = processor(images=pixels, text=[prefix] * len(pixels) if prefix else None, return_tensors="pt")
    tokens = model.generate(**inputs.to(model.device), max_new_tokens=max_tokens)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
