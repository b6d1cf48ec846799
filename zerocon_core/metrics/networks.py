"""The networks that metrics look through, loaded from local files in the published formats. All compute in float32.

Weights come from a folder in transformers' format or from a file; nothing is downloaded here. Each network is a module that
takes images (B, H, W, 3) in [0, 1] from any device to its own.
"""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, ViTModel

from ..pretrained import first_line, load_network, load_part, load_tensors, load_tokenizer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIDE, DINO_LONGEST = 224, 480
VIT_HEADS = ("pooler.", "vit.pooler.", "classifier.")
"""What a ViT was trained with above its last layer, where `Dino` does not look."""


class Dino(nn.Module):
    """Keys of the last layer of a DINO transformer, for `structure`. The papers take ViT-B/8."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        # transformers 4 calls it key, transformers 5 k_proj
        *_, self._key = (module for path, module in vit.named_modules() if path.endswith((".key", ".k_proj")))

    @torch.no_grad()
    def forward(self, images: Tensor, peak: float = 1.0) -> Tensor:
        """Keys (B, 1 + patches, channels), CLS first, heads concatenated.

        The short side is resized to 224 pixels, bilinear without antialiasing as by the papers' code. PIE-Bench's code feeds
        pixels of 0 to 255 to a normalisation meant for 0 to 1: `peak` 255 does the same.
        """
        height, width = dino_size(images.shape[1], images.shape[2])
        pixels = images[..., :3].movedim(-1, 1).to(self._key.weight)
        pixels = F.interpolate(pixels * peak, size=(height, width), mode="bilinear")
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        keys: list[Tensor] = []
        hook = self._key.register_forward_hook(lambda module, inputs, output: keys.append(output))
        try:
            self.vit(pixel_values=(pixels - mean) / std, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        return keys[0]


def dino_size(height: int, width: int) -> tuple[int, int]:
    """What DINO sees of an image: the short side at 224 pixels, unless the long one would pass 480."""
    short, long = min(height, width), max(height, width)
    side, longest = DINO_SIDE, DINO_SIDE * long // short
    if longest > DINO_LONGEST:
        side, longest = DINO_LONGEST * side // longest, DINO_LONGEST
    return (side, longest) if height <= width else (longest, side)


class Clip(nn.Module):
    """Unit features of images and texts, for `clip`. The papers take ViT-L/14 (PIE-Bench) and ViT-B/32."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: CLIPImageProcessor) -> None:
        super().__init__()
        self.model, self.tokenizer, self.preprocess = model, tokenizer, preprocess

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(B, channels), of the middle of each image as CLIP's own preprocessing takes it from 8-bit pixels."""
        pixels = [(image.clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images[..., :3]]
        inputs = self.preprocess(pixels, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(**inputs).pooler_output), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """(B, channels); what is longer than CLIP reads is cut off."""
        limit = self.model.config.get_text_config().max_position_embeddings
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        outputs = self.model.text_model(**inputs.to(self.model.device))
        return F.normalize(self.model.text_projection(outputs.pooler_output), dim=-1)


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018), version 0.1, with the weights of the lpips package on a given trunk."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,)"""
        device = next(self.parameters()).device
        a, b = (images[..., :3].movedim(-1, 1).float().to(device) for images in (a, b))
        distances: Tensor = self.model(a, b, normalize=True)
        return distances.flatten()


class Inception(nn.Module):
    """Features of the network that FID was published with (Heusel et al. 2017), as torch-fidelity ports it to PyTorch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 2048), of 8-bit pixels that the port resizes to 299x299 as TensorFlow 1 did."""
        pixels = (images[..., :3].clamp(0, 1) * 255).round().byte().movedim(-1, 1)
        features: Tensor = self.model(pixels.to(next(self.parameters()).device))[0]
        return features


def load_dino(folder: str | Path) -> Dino:
    """From a folder with a ViT in transformers' format. Raises OSError if it holds no whole one."""
    without_pooler = (False,)  # DINO has none
    return Dino(load_network(ViTModel, folder, "ViT", VIT_HEADS, without_pooler))


def load_clip(folder: str | Path) -> Clip:
    """From a folder with a CLIP in transformers' format. Raises OSError if it holds no whole one."""
    model = load_network(CLIPModel, folder, "CLIP")
    tokenizer = load_tokenizer(CLIPTokenizer, folder, "CLIP", model)
    return Clip(model, tokenizer, load_part(CLIPImageProcessor, folder, "CLIP"))


def load_lpips(net: str, trunk: str | Path) -> Lpips:
    """`net` is squeeze (PIE-Bench's), alex or vgg; `trunk` is torchvision's file of that network, trained on ImageNet.

    Raises ImportError without the lpips package and OSError for a file that does not fit.
    """
    try:
        import lpips  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("LPIPS needs the package lpips; install it with: pip install lpips") from None

    with warnings.catch_warnings():  # the package calls torchvision in a way that is deprecated
        warnings.simplefilter("ignore", UserWarning)
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    features = {name: tensor for name, tensor in load_tensors(trunk).items() if name.startswith("features.")}
    try:
        # Its slices number the layers as torchvision's `features` does.
        model.net.load_state_dict({key: features.pop(f"features.{key.split('.', 1)[1]}") for key in model.net.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise OSError(f"{trunk} does not hold the weights of LPIPS's {net} network: {first_line(error)}") from error
    if features:
        raise OSError(f"{trunk} holds another network than LPIPS's {net}, which has no {min(features)}")
    return Lpips(model.float().eval())


def load_inception(file: str | Path) -> Inception:
    """`file` holds the weights that torch-fidelity publishes, or the same as safetensors.

    Raises ImportError without the torch-fidelity package and OSError for a file that does not fit.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("FID needs the package torch-fidelity; install it with: pip install torch-fidelity") from None

    tensors = io.BytesIO()  # the package unpickles whatever it is given, so it gets a copy that is known to be harmless
    torch.save(load_tensors(file), tensors)
    tensors.seek(0)
    try:
        return Inception(FeatureExtractorInceptionV3("inception", ["2048"], tensors))
    except Exception as error:
        raise OSError(f"{file} does not hold the weights of FID's Inception network: {first_line(error)}") from error
