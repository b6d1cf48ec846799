"""Sizes of the toy world's models, in the terms of the host's own classes."""

from typing import Any

IMAGE_SIZE = 64
LATENT_CHANNELS = 4
DOWNSCALE = 4

# GroupNorm has 32 groups in the host's classes, so every width is a multiple of 32.
VAE_PARAMS: dict[str, Any] = {
    "embed_dim": LATENT_CHANNELS,
    "ddconfig": {
        "double_z": True,
        "z_channels": LATENT_CHANNELS,
        "resolution": IMAGE_SIZE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}

# Transformers at both levels and in the middle, so that every kind of hook site of Stable Diffusion exists.
UNET_CONFIG: dict[str, Any] = {
    "image_size": IMAGE_SIZE // DOWNSCALE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 96,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_spatial_transformer": True,
    "legacy": False,
}
UNET_HEADS = 2

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
