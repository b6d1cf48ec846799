"""A captioner under the host's memory management."""

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...zerocon_core.toyworld import weights
from ..files.networks import TOY_CAPTIONER, captioner_folder
from .memory import on_device


def caption(images: Tensor, name: str, prefix: str) -> list[str]:
    """Captions of images (B, H, W, 3), by the captioner of a name from `captioner_names`."""
    # Its import of transformers takes longer than the rest of the pack, and few runs of the host need it.
    from ...zerocon_core.language.captioning import caption_images, load_captioner

    try:
        captioner = load_captioner(captioner_folder(name, weights.CAPTIONER_FOLDER))
    except OSError as error:
        if name == TOY_CAPTIONER:
            raise weights.unreadable_captioner(error) from error
        raise
    progress = comfy.utils.ProgressBar(len(images))
    captions = []
    with on_device(captioner[0]):
        for image in images.split(1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            captions += caption_images(*captioner, image, prefix)
            progress.update(1)
    return captions
