"""This repository as the package `zerocon_pack`, for programs beside ComfyUI's own: training and benchmarks.

They run from the repository root (`python -m benchmarks.quality.edit_masks`) and say `from zerocon_pack.bridge.toyworld import
load_toy_world`. ComfyUI is found as dev.py finds it. Neither its server nor the list of our nodes is imported.
"""

import sys
from pathlib import Path

import torch

from tools.comfy_server import ROOT, find_comfyui

__path__ = [str(ROOT)]


def start_host(comfyui: Path | None) -> None:
    """Make ComfyUI's `comfy` importable, on the CPU where there is no CUDA, with PyTorch's own attention."""
    if comfyui is None:
        raise ImportError("no ComfyUI around this folder or in ~/comfy/ComfyUI; set COMFYUI_PATH")
    # Before this repository, whose `nodes` would hide the host's module of that name.
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    # Without this a CPU runs the host's sub-quadratic attention, which is slower and which no GPU runs.
    args.use_pytorch_cross_attention = True


start_host(find_comfyui())
