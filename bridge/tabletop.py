"""The tabletop as the host's own MODEL, CLIP and VAE: its classes and its device management, at small sizes."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch.nn import functional as F

from ..zerocon_core.tabletop import config, weights
from ..zerocon_core.tabletop.autoencoder import PatchAutoencoder, load_autoencoder

# A patcher class that picks the host's memory strategy; hosts that have only one strategy lack it.
_Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)

TOKENS = "text_model.embeddings.token_embedding.weight"
_TOKEN_IDS = "token_ids"
_VOCABULARY = 49_408

# Bytes of fp32 activations that one pixel costs the autoencoder at its widest.
_ENCODE_BYTES, _DECODE_BYTES = 50, 600


class TabletopLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents of unit variance over all channels, at an eighth of the picture's resolution, with a linear preview."""

    latent_channels = config.LATENT_CHANNELS
    spacial_downscale_ratio = config.DOWNSCALE

    def __init__(self, autoencoder: PatchAutoencoder | None = None) -> None:
        self.scale_factor = 1.0
        if autoencoder is not None:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = _preview(autoencoder)


class TabletopModel(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 in everything but its sizes and its latents."""

    unet_extra_config = {"num_heads": config.UNET_HEADS, "num_head_channels": -1}
    latent_format = TabletopLatentFormat


def load_tabletop() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE with the shipped weights."""
    return load_model(), load_clip(), build_vae(load_autoencoder())


def load_model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The U-Net. Hosts that stream weights call this again, with `disable_dynamic`, for a copy whose weights stay in place."""
    model = build_model(TabletopLatentFormat(load_autoencoder()))
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else _Patcher
    patcher = kind(
        model, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()
    )
    _load(model.diffusion_model, "unet", weights.read("unet"), patcher)
    patcher.cached_patcher_init = (load_model, ())
    return patcher


def load_clip() -> comfy.sd.CLIP:
    """The text encoder."""
    clip = build_clip()
    _load(clip.cond_stage_model.clip_l.transformer, "text_encoder", text_encoder_weights(), clip.patcher)
    return clip


def build_model(latents: TabletopLatentFormat) -> comfy.model_base.BaseModel:
    """The U-Net in the host's wrapper, its weights undefined."""
    model_config = TabletopModel(config.UNET_CONFIG)
    model_config.latent_format = latents
    model_config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.BaseModel(
        model_config, comfy.model_base.ModelType.EPS, device=comfy.model_management.unet_offload_device()
    )


def build_clip() -> comfy.sd.CLIP:
    """The text encoder with the host's stock tokenizer, its weights undefined."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    # On the CPU first: hosts with lazily loaded weights must not move them to a device before they are there.
    options = {"dtype": torch.float32, "initial_device": torch.device("cpu"), "clip_l_model_config": dict(config.TEXT_CONFIG)}
    return comfy.sd.CLIP(target, model_options=options)


def build_vae(autoencoder: PatchAutoencoder) -> comfy.sd.VAE:
    """The autoencoder as a VAE of the host, which lets no class of ours in but through its door for pixel space."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = autoencoder.eval()
    vae.latent_channels = config.LATENT_CHANNELS
    vae.downscale_ratio = vae.upscale_ratio = config.DOWNSCALE
    vae.memory_used_encode = lambda shape, dtype: _ENCODE_BYTES * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, dtype: _DECODE_BYTES * shape[2] * shape[3] * config.DOWNSCALE**2
    # Its convolutions are torch's own, which the host cannot stream weights into.
    vae.disable_offload = True
    vae.patcher = comfy.model_patcher.ModelPatcher(
        autoencoder, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    return vae


def text_encoder_weights() -> dict[str, torch.Tensor]:
    """The text encoder's weights with the token table made whole: only rows that training touched ship, the others are zero."""
    state = weights.read("text_encoder")
    try:
        rows, ids = state.pop("token_rows"), state.pop(_TOKEN_IDS)
    except KeyError as error:
        raise weights.damaged("text_encoder") from error
    state[TOKENS] = rows.new_zeros(_VOCABULARY, rows.shape[1]).index_copy_(0, ids, rows)
    return state


def pack_text_encoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `text_encoder_weights`: a state dict with the token table reduced to its rows that are not zero."""
    packed = dict(state)
    table = packed.pop(TOKENS)
    ids = table.abs().sum(dim=1).nonzero()[:, 0]
    return packed | {"token_rows": table[ids], _TOKEN_IDS: ids}


def _preview(autoencoder: PatchAutoencoder) -> tuple[list[list[float]], list[float]]:
    """Factors (16 x 3) and bias from a latent to the mean of its patch in [-1, 1], which is what the host's previewer expects."""
    probes = torch.cat([torch.zeros(1, config.LATENT_CHANNELS), torch.eye(config.LATENT_CHANNELS)])[..., None, None]
    means = F.avg_pool2d(autoencoder.decode_linear(probes), config.DOWNSCALE).flatten(1)
    return (means[1:] - means[0]).tolist(), means[0].tolist()


def _load(module: torch.nn.Module, name: str, state: dict[str, torch.Tensor], patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Fill `module`, as the host does: it keeps the given tensors where it loads weights lazily, and copies them elsewhere."""
    lazy = getattr(patcher, "is_dynamic", bool)()
    if module.load_state_dict(state, strict=False, assign=lazy).missing_keys:
        raise weights.damaged(name)
