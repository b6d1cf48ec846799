"""A few cells of the table of `python -m benchmarks.patches`, and models that are told what they are."""

import re
from types import SimpleNamespace

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from tiny import COMMON, CPU, SHALLOW, WIDTH, randn
from zerocon_pack.benchmarks.patches.cells import check
from zerocon_pack.benchmarks.patches.patches import PATCHES
from zerocon_pack.benchmarks.patches.subject import execute, toy_subject
from zerocon_pack.bridge.model.patches import chance_of_now, pass_of_one_chance
from zerocon_pack.nodes.attention_hooked_unet import AttentionHookedUNet
from zerocon_pack.nodes.attention_injection import AttentionInjection
from zerocon_pack.nodes.attention_map_preview import AttentionMapPreview
from zerocon_pack.nodes.cds_optimize import CDSOptimize
from zerocon_pack.nodes.ddim_invert import DDIMInvert
from zerocon_pack.nodes.edit_mask import EditMask
from zerocon_pack.nodes.shared.models import check_image_model
from zerocon_pack.nodes.soft_contrastive_train import SoftContrastiveTrain
from zerocon_pack.zerocon_core.methods.inversion import Trajectory


@pytest.fixture(scope="module")
def subject():
    return toy_subject()


CELLS = {
    ("EasyCache", "guidance"): "right",
    ("EasyCache", "CDS"): "right",
    ("LazyCache", "guidance"): "LazyCache leaves out steps of the sampler",
    ("ContextWindowsManual", "guidance"): "context windows run the model on one part",
    ("ContextWindowsManual", "word maps"): "context windows run the model on one part",
    ("ContextWindowsManual", "training"): "context windows run the model on one part",
    ("FreeU_V2", "CDS"): "right",
    ("TomePatchModel", "inversion"): "right",
    ("TomePatchModel", "word maps"): "right",
    ("TomePatchModel", "training"): "right",
    ("inpaint model", "training"): "right",
    ("nothing", "masks"): "right",
}


@pytest.mark.parametrize("patch, method", CELLS)
def test_a_patch_is_right_or_refused_by_name(patch, method, subject):
    try:
        with torch.inference_mode():
            PATCHES[patch](subject)
    except KeyError as missing:
        pytest.skip(f"this host has no {missing}")
    cell, expected = check(method, PATCHES[patch], subject), CELLS[patch, method]
    assert cell.right if expected == "right" else expected in cell.refusal, cell.text


def test_a_pass_meets_the_same_chance_each_time_and_takes_none_from_others():
    before, chance = torch.get_rng_state(), lambda x: torch.rand(x.shape)
    first, again = (pass_of_one_chance(chance, randn(4)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)
    now = chance_of_now(torch.device("cpu"))
    drawn = torch.rand(4)
    with now():
        assert torch.equal(torch.rand(4), drawn)
    assert not torch.equal(torch.rand(4), drawn)


def test_the_table_holds_37_nodes_of_the_host():
    assert len({re.split(",| of ", name)[0] for name in PATCHES} - {"nothing"}) >= 37


def tiny_svd():
    """The host's class for Stable Video Diffusion, at the size of the other tiny models."""
    sizes = COMMON | SHALLOW | {
        "use_linear_in_transformer": True, "in_channels": 8, "adm_in_channels": 768, "num_classes": "sequential",
        "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
        "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "dtype": torch.float32,
    }  # fmt: skip
    config = comfy.supported_models.SVD_img2vid(sizes)
    config.unet_config |= {"num_heads": 2, "num_head_channels": -1}
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SVD_img2vid(config, device=CPU)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


NODES = [AttentionHookedUNet, AttentionInjection, AttentionMapPreview, CDSOptimize, DDIMInvert, EditMask, SoftContrastiveTrain]


@pytest.mark.parametrize("node", NODES)
def test_a_video_model_is_told_what_it_is(node):
    """Whatever else the node is given."""
    schema = node.define_schema()
    given = {
        "MODEL": tiny_svd(),
        "CLIP": SimpleNamespace(encode_from_tokens=None),
        "LATENT": {"samples": randn(1, 4, 8, 8)},
        "CONDITIONING": [[randn(1, 7, WIDTH), {}]],
        "STRING": "",
        "ZEROCON_TRAJECTORY": Trajectory(torch.ones(1), [randn(1, 4, 8, 8)]),
    }
    needed = [value for value in schema.inputs if not value.optional]
    default = lambda value: getattr(value, "default", None)
    inputs = {value.id: given[value.get_io_type()] if default(value) is None else default(value) for value in needed}
    if schema.is_input_list:
        inputs = {name: [value] for name, value in inputs.items()}
    with torch.inference_mode(), pytest.raises(ValueError) as refused:
        execute(node, **inputs)
    assert re.match(f"{schema.display_name}: SVD_img2vid is a video model.*; it needs an image model", str(refused.value))


@pytest.mark.parametrize("dimensions, kind", [(1, "sound"), (3, "video")])
def test_models_of_other_latents_are_told_what_they_are(dimensions, kind):
    model = tiny_svd()
    model.add_object_patch("diffusion_model", torch.nn.Identity())
    model.add_object_patch("latent_format", type("Latents", (), {"latent_dimensions": dimensions})())
    with pytest.raises(ValueError, match=f"works on latents of {dimensions} dimensions, as {kind}"):
        check_image_model(model)
