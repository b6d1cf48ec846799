"""The bundled toy world as the host's own MODEL, CLIP and VAE: its classes and its device management, at small sizes."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch

from ..zerocon_core.toyworld import config, weights

# A patcher class that picks the host's memory strategy; hosts that have only one strategy lack it.
_Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)

TOKENS = "text_model.embeddings.token_embedding.weight"
_TOKEN_IDS = "token_ids"
_VOCABULARY = 49_408


class ToyLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents of unit variance at a quarter of the image's resolution, with a linear preview."""

    latent_channels = config.LATENT_CHANNELS
    spacial_downscale_ratio = config.DOWNSCALE

    def __init__(
        self, scale: float = 1.0, rgb_factors: list[list[float]] | None = None, rgb_bias: list[float] | None = None
    ) -> None:
        self.scale_factor = scale
        self.latent_rgb_factors = rgb_factors
        self.latent_rgb_factors_bias = rgb_bias


class ToyWorldModel(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 in everything but its sizes and its latents."""

    unet_extra_config = {"num_heads": config.UNET_HEADS, "num_head_channels": -1}
    latent_format = ToyLatentFormat


def load_toy_world() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE with the shipped weights."""
    return load_model(), load_clip(), build_vae(weights.read("vae"))


def load_model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The U-Net. Hosts that stream weights call this again, with `disable_dynamic`, for a copy whose weights stay in place."""
    model = build_model(latent_format(weights.read("vae")))
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


def latent_format(vae_state: dict[str, torch.Tensor]) -> ToyLatentFormat:
    """What the autoencoder's file says about its latents."""
    try:
        scale, factors, bias = (vae_state[f"latent.{name}"].tolist() for name in ("scale", "rgb_factors", "rgb_bias"))
    except KeyError as error:
        raise weights.damaged("vae") from error
    return ToyLatentFormat(scale, factors, bias)


def build_model(latents: ToyLatentFormat) -> comfy.model_base.BaseModel:
    """The U-Net in the host's wrapper, its weights undefined."""
    model_config = ToyWorldModel(config.UNET_CONFIG)
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


def build_vae(state: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    """The autoencoder with weights `state`."""
    vae = comfy.sd.VAE(sd=state, config={"params": dict(config.VAE_PARAMS)}, dtype=torch.float32)
    vae.downscale_ratio = vae.upscale_ratio = config.DOWNSCALE
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


def _load(module: torch.nn.Module, name: str, state: dict[str, torch.Tensor], patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Fill `module`, as the host does: it keeps the given tensors where it loads weights lazily, and copies them elsewhere."""
    lazy = getattr(patcher, "is_dynamic", bool)()
    if module.load_state_dict(state, strict=False, assign=lazy).missing_keys:
        raise weights.damaged(name)
