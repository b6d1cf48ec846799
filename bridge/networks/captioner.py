"""A captioner under the host's memory management."""

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...zerocon_core.toyworld import weights
from ..files.networks import TOY_CAPTIONER, captioner_folder


def caption(images: Tensor, name: str, prefix: str) -> list[str]:
    """Captions of images (B, H, W, 3), by the captioner of a name from `files.captioner_names`."""
    # Its import of transformers takes longer than the rest of the pack, and few runs of the host need it.
    from ...zerocon_core.language.captioning import caption_images, load_captioner

    try:
        model, processor = load_captioner(captioner_folder(name, weights.CAPTIONER_FOLDER))
    except OSError as error:
        if name == TOY_CAPTIONER:
            raise weights.unreadable_captioner(error) from error
        raise OSError(f"AutoCaption: {str(error).removeprefix('AutoCaption: ')}") from error
    patcher = ModelPatcher(
        nn.ModuleDict({"captioner": model}),  # the patcher sets its model's `device`, which transformers' models forbid
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    comfy.model_management.load_models_gpu([patcher])
    progress = comfy.utils.ProgressBar(len(images))
    captions = []
    for image in images.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        captions += caption_images(model, processor, image, prefix)
        progress.update(1)
    return captions
