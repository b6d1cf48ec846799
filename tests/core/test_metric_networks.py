"""The networks of metrics, loaded from files in the published layout, against the classes that their papers used."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import save_clip, save_dino, save_lpips_trunk
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision import models
from torchvision.transforms import Normalize, Resize
from transformers import CLIPModel, CLIPProcessor

from zerocon_core.metrics.edits import Edits, clip_metrics, fid, lpips_metrics, structure_metrics
from zerocon_core.metrics.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    dino_size,
    load_clip,
    load_dino,
    load_inception,
    load_lpips,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def nothing() -> None:
    pass


TIMM = {
    "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "encoder.layer": "blocks",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "layernorm": "norm",
}  # fmt: skip


def as_timm(folder: Path) -> timm.models.VisionTransformer:
    """The same weights in timm's class, which keeps DINO's own layout with one `qkv` a block."""
    state = load_file(folder / "model.safetensors")
    for block in range(2):
        for kind in ("weight", "bias"):
            names = [f"encoder.layer.{block}.attention.attention.{name}.{kind}" for name in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
    for old, new in TIMM.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    model = timm.models.VisionTransformer(224, 32, num_classes=0, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_dino_gives_the_keys_that_a_hook_on_qkv_sees(dino_folder, peak):
    dino = load_dino(dino_folder)
    theirs, seen = as_timm(dino_folder), []
    theirs.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = rand(2, 60, 60, 3)
    pixels = Resize(224, max_size=480, antialias=False)(images.movedim(-1, 1) * peak)
    with torch.no_grad():
        theirs(Normalize(IMAGENET_MEAN, IMAGENET_STD)(pixels))
    keys = seen[0].reshape(2, 50, 3, 2, 8)[:, :, 1].reshape(2, 50, 16)  # image, token, q k or v, head, channel
    assert torch.allclose(dino(images, peak), keys, atol=1e-4 * peak)


@pytest.mark.parametrize("height, width", [(64, 64), (512, 512), (300, 400), (400, 301), (100, 333), (333, 100)])
def test_dino_sees_the_size_that_the_papers_code_resizes_to(height, width):
    assert dino_size(height, width) == tuple(Resize(224, max_size=480)(torch.zeros(1, height, width)).shape[1:])


def test_dino_takes_images_of_any_shape(dino_folder):
    assert load_dino(dino_folder)(rand(1, 30, 45, 3)).shape == (1, 1 + 7 * 10, 16)


def test_clip_features_are_those_of_the_whole_model(clip_folder):
    """CLIPModel's own forward pass, on pictures as PIL has them."""
    clip = load_clip(clip_folder)
    images, texts = rand(2, 40, 56, 3), ["a cat", "dogs on the grass"]
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    pictures = [Image.fromarray((image.numpy() * 255).round().astype(np.uint8)) for image in images]
    with torch.no_grad():
        outputs = model(**processor(text=texts, images=pictures, return_tensors="pt", padding=True))
    assert torch.allclose(clip.images(images), outputs.image_embeds, atol=1e-5)
    assert torch.allclose(clip.texts(texts), outputs.text_embeds, atol=1e-5)


def test_clip_cuts_off_what_is_too_long(clip_folder):
    clip = load_clip(clip_folder)
    assert torch.allclose(clip.texts(["a" * 16 + "bcd"]), clip.texts(["a" * 16 + "xyz"]))
    assert not torch.allclose(clip.texts(["a" * 12 + "bcd"]), clip.texts(["a" * 12 + "xyz"]))


class OlderCLIPModel(CLIPModel):
    """Gives features as transformers did before version 5, which torchmetrics still expects."""

    def get_image_features(self, *inputs) -> Tensor:
        return super().get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs) -> Tensor:
        return super().get_text_features(*inputs).pooler_output


def test_clip_score_is_that_of_torchmetrics(clip_folder):
    edited, texts = rand(2, 40, 56, 3), ["a cat", "dogs on the grass"]
    scores = clip_metrics(load_clip(clip_folder), Edits(edited, edited, None, None, texts), nothing)["clip_score"]
    network = OlderCLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    for image, text, score in zip(edited, texts, scores, strict=True):
        pixels = (image.movedim(-1, 0) * 255).round().byte()
        theirs = torchmetrics_clip_score(pixels, text, model_name_or_path=lambda: network).item()
        assert score == pytest.approx(theirs, abs=1e-3)


TAPS = {
    "squeeze": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12)),
    "alex": ("alexnet", (1, 4, 7, 9, 11)),
    "vgg": ("vgg16", (3, 8, 15, 22, 29)),
}
"""Layers of torchvision's `features` whose outputs LPIPS compares."""


@pytest.mark.parametrize("net", TAPS)
def test_lpips_is_that_of_a_loop(net, tmp_path):
    """Zhang et al. eq. 1: squared differences of unit vectors, weighted by channel, averaged over places, summed over layers."""
    name, taps = TAPS[net]
    file = save_lpips_trunk(tmp_path / "trunk.pth", name)
    with torch.device("meta"):  # its classifier, which has most of the weights, is not needed
        network = models.get_model(name)
    network.load_state_dict(torch.load(file), strict=False, assign=True)
    lpips, layers = load_lpips(net, file), network.features.double().eval()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = rand(2, 72, 64, 3), rand(2, 72, 64, 3, seed=1)
    expected = [0.0, 0.0]
    with torch.no_grad():
        x, y = (((images * 2 - 1 - shift) / scale).movedim(-1, 1).double() for images in (a, b))
        for index, layer in enumerate(layers):
            x, y = layer(x), layer(y)
            if index not in taps:
                continue
            weights = lpips.model.lins[taps.index(index)].model[-1].weight.flatten().double()
            for i in range(2):
                unit = [v[i] / (v[i].square().sum(0).sqrt() + 1e-10) for v in (x, y)]
                expected[i] += float(((unit[0] - unit[1]).square().mean((1, 2)) * weights).sum())
    assert lpips(a, b).tolist() == pytest.approx(expected, rel=1e-4)
    assert lpips(a, a).tolist() == [0.0, 0.0]


def test_lpips_reads_safetensors_too(squeeze, tmp_path):
    save_file(torch.load(squeeze), tmp_path / "squeezenet1_1.safetensors")
    a, b = rand(1, 64, 64, 3), rand(1, 64, 64, 3, seed=1)
    assert torch.equal(load_lpips("squeeze", tmp_path / "squeezenet1_1.safetensors")(a, b), load_lpips("squeeze", squeeze)(a, b))


def test_identical_images_are_ideal_and_a_full_mask_has_no_background(dino_folder, squeeze):
    images = rand(2, 64, 64, 3)
    mask = torch.stack([torch.ones(64, 64), torch.zeros(64, 64)])
    assert structure_metrics(load_dino(dino_folder), Edits(images, images), 1.0, nothing) == {"structure": [0.0, 0.0]}
    lpips = load_lpips("squeeze", squeeze)
    same = lpips_metrics(lpips, Edits(images, images, mask), nothing)
    assert same == {"lpips": [0.0, 0.0], "background_lpips": [None, 0.0]}
    edited = lpips_metrics(lpips, Edits(images, images.flip(2), mask), nothing)
    assert edited["background_lpips"] == [None, edited["lpips"][1]] and edited["lpips"][1] > 0


class Pictures(list, Dataset):
    """8-bit pictures as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        super().__init__((images.movedim(-1, 1) * 255).round().byte())


def test_fid_is_that_of_torch_fidelity(inception_file):
    source, edited = rand(5, 40, 56, 3), rand(5, 40, 56, 3, seed=1) ** 2
    theirs = calculate_metrics(
        input1=Pictures(source), input2=Pictures(edited), fid=True, feature_extractor_weights_path=str(inception_file),
        batch_size=5, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )["frechet_inception_distance"]  # fmt: skip
    inception = load_inception(inception_file)
    assert fid(inception, Edits(source, edited), nothing) == pytest.approx(theirs, rel=1e-3)
    assert fid(inception, Edits(source, source.flip(0)), nothing) < 1e-6 * theirs  # the same set


def test_inception_features_are_those_of_torchmetrics(inception_file, tmp_path):
    theirs = NoTrainInceptionV3("inception", ["2048"], str(inception_file), antialias=False)
    images = rand(2, 40, 56, 3)
    with torch.no_grad():
        features = theirs((images * 255).round().byte().movedim(-1, 1))
    assert torch.allclose(load_inception(inception_file)(images), features, atol=1e-6)
    save_file(torch.load(inception_file), tmp_path / "inception.safetensors")
    assert torch.allclose(load_inception(tmp_path / "inception.safetensors")(images), features, atol=1e-6)


def test_networks_compute_in_float32_without_gradients(dino_folder, clip_folder, squeeze, inception_file):
    networks = load_dino(dino_folder), load_clip(clip_folder), load_lpips("squeeze", squeeze), load_inception(inception_file)
    for network in networks:
        assert not any(module.training for module in list(network.modules())[1:])
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not load_dino(dino_folder)(rand(1, 32, 32, 3)).requires_grad
