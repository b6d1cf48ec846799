"""Sizes of the tabletop's models, in the terms of the host's own classes."""

from typing import Any

LATENT_CHANNELS = 16
DOWNSCALE = 8
LATENT_SIZE = 16  # of a picture of 128 pixels

# GroupNorm has 32 groups in the host's classes, so every width is a multiple of 32. Transformers stand at both levels and in the
# middle, so that every kind of hook site of Stable Diffusion exists.
UNET_CONFIG: dict[str, Any] = {
    "image_size": LATENT_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 128,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_spatial_transformer": True,
    "legacy": False,
}
UNET_HEADS = 2

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
