"""Captions from a BLIP model (Li et al. 2022), loaded from a folder in transformers' format."""

from pathlib import Path

from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipProcessor, PreTrainedModel


def load_captioner(folder: str | Path) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Model (float32, on the CPU) and processor from a local `folder`. Raises OSError for a missing or damaged one."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} holds no captioner: config.json is missing")
    try:
        model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return model.float().eval(), BlipProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise OSError(f"the captioner in {folder} cannot be read: {error}") from error


def caption_images(
    model: PreTrainedModel, processor: BlipProcessor, images: Tensor, prefix: str = "", max_tokens: int = 40
) -> list[str]:
    """One caption an image, by greedy search. `images` is (B, H, W, 3) in [0, 1]; a `prefix` is continued."""
    pixels = [(image.clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images[..., :3]]
    inputs = processor(images=pixels, text=[prefix] * len(pixels) if prefix else None, return_tensors="pt")
    tokens = model.generate(**inputs.to(model.device), max_new_tokens=max_tokens)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
