"""Captioners, BERT models and the networks of metrics: the hub's by name, and the folders that users add."""

import json
from pathlib import Path

from .downloads import Tell, hub_folder, in_hub_cache, published_file
from .folders import OFF, local_folder, local_folders, register

CAPTIONERS = register("captioners")
HUB_CAPTIONERS = ("Salesforce/blip-image-captioning-base", "Salesforce/blip-image-captioning-large")
TOY_CAPTIONER = "toy world"
FILL_MASKS = register("fill_mask")
HUB_FILL_MASKS = ("google-bert/bert-base-uncased", "google-bert/bert-large-uncased")
METRICS = register("metrics")
HUB_NETWORKS = {"clip": ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"), "vit": ("facebook/dino-vitb8",)}
"""By the `model_type` of their config.json."""
MEGABYTES = {"openai/clip-vit-large-patch14": 1_700, "openai/clip-vit-base-patch32": 600, "facebook/dino-vitb8": 340}
LPIPS_TRUNKS = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}
"""What the lpips package and torchvision call the same networks."""
INCEPTION = "inception"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_MEGABYTES = 96


def captioner_names() -> list[str]:
    """The toy captioner, the hub's BLIP models, and the local folders."""
    return [TOY_CAPTIONER, *HUB_CAPTIONERS, *sorted(local_folders(CAPTIONERS))]


def captioner_folder(name: str, toy_folder: Path) -> Path:
    """Local folder of a name from `captioner_names`; a hub model is downloaded into the hub's cache if it is not there yet."""
    if name == TOY_CAPTIONER:
        return toy_folder
    if name in HUB_CAPTIONERS:
        return hub_folder(name, CAPTIONERS)
    return local_folder(CAPTIONERS, name, "a BLIP captioner in transformers' format")


def fill_mask_names() -> list[str]:
    """The hub's BERT models, and the local folders."""
    return [OFF, *HUB_FILL_MASKS, *sorted(local_folders(FILL_MASKS))]


def fill_mask_folder(name: str) -> Path:
    """Local folder of a name from `fill_mask_names`; a hub model is downloaded into the hub's cache if it is not there yet."""
    if name in HUB_FILL_MASKS:
        return hub_folder(name, FILL_MASKS)
    return local_folder(FILL_MASKS, name, "a BERT model in transformers' format")


def network_names(model_type: str) -> list[str]:
    """The hub's networks of this type, and the local folders in models/metrics that hold one."""
    return [*HUB_NETWORKS[model_type], *sorted(name for name, f in local_folders(METRICS).items() if _type(f) == model_type)]


def network_folder(name: str, model_type: str, tell: Tell) -> Path:
    """Local folder of a name from `network_names`; a hub network is downloaded into the hub's cache if it is not there yet."""
    if name not in HUB_NETWORKS[model_type]:
        return local_folder(METRICS, name, "a network in transformers' format")
    if not in_hub_cache(name):
        tell(f"downloading {name} ({MEGABYTES[name]} MB) into the Hugging Face cache")
    return hub_folder(name, METRICS)


def lpips_trunk(net: str, tell: Tell) -> Path:
    """File with an LPIPS network's ImageNet weights, as torchvision publishes them."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(LPIPS_TRUNKS[net]).DEFAULT
    return published_file(weights.url, weights.meta["_file_size"], METRICS, "lpips", tell)


def inception_file(tell: Tell) -> Path:
    """File with the weights of FID's Inception network, as torch-fidelity publishes them."""
    return published_file(INCEPTION_URL, INCEPTION_MEGABYTES, METRICS, "fid", tell)


def _type(folder: Path) -> str | None:
    """What transformers' config.json in a folder says it is."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
