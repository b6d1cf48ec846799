"""Files in the host's folders: edit directions, captioners, WordNet databases, BERT models and the networks of metrics."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import comfy.utils
import folder_paths
import safetensors.torch
import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from tqdm.auto import tqdm

from ...zerocon_core.language.directions import EditDirection

DIRECTIONS = "edit_directions"
SAVED = "directions"
CAPTIONERS = "captioners"
HUB_CAPTIONERS = ("Salesforce/blip-image-captioning-base", "Salesforce/blip-image-captioning-large")
TOY_CAPTIONER = "toy world"
WORDNETS = "wordnet"
INSTALLED = "installed"
INSTALLED_WORDNETS = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict")
"""Where Debian's and Ubuntu's package wordnet-base and WordNet's own installer put the database."""
FILL_MASKS = "fill_mask"
HUB_FILL_MASKS = ("google-bert/bert-base-uncased", "google-bert/bert-large-uncased")
OFF = "off"
METRICS = "metrics"
HUB_NETWORKS = {"clip": ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"), "vit": ("facebook/dino-vitb8",)}
"""By the `model_type` of their config.json."""
MEGABYTES = {"openai/clip-vit-large-patch14": 1_700, "openai/clip-vit-base-patch32": 600, "facebook/dino-vitb8": 340}
LPIPS_TRUNKS = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}
"""What the lpips package and torchvision call the same networks."""
INCEPTION = "inception"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_MEGABYTES = 96

Tell = Callable[[str], None]
"""Told of a download before it starts."""

folder_paths.add_model_folder_path(DIRECTIONS, os.path.join(folder_paths.models_dir, DIRECTIONS))
folder_paths.add_model_folder_path(CAPTIONERS, os.path.join(folder_paths.models_dir, CAPTIONERS))
folder_paths.add_model_folder_path(WORDNETS, os.path.join(folder_paths.models_dir, WORDNETS))
folder_paths.add_model_folder_path(FILL_MASKS, os.path.join(folder_paths.models_dir, FILL_MASKS))
folder_paths.add_model_folder_path(METRICS, os.path.join(folder_paths.models_dir, METRICS))


def saved_directions() -> Path:
    return Path(folder_paths.get_output_directory()) / SAVED


def direction_names() -> list[str]:
    """Files in models/edit_directions, and those in output/directions marked so."""
    own = [name for name in folder_paths.get_filename_list(DIRECTIONS) if name.endswith(".safetensors")]
    return own + [f"{path.name} [output]" for path in sorted(saved_directions().glob("*.safetensors"))]


def direction_path(name: str) -> str:
    """Path of a name from `direction_names`; never outside the two folders."""
    if name.endswith(" [output]"):
        path = saved_directions() / os.path.basename(name.removesuffix(" [output]"))
        if path.is_file():
            return str(path)
        raise FileNotFoundError(f"LoadEditDirection: {path} does not exist")
    return folder_paths.get_full_path_or_raise(DIRECTIONS, name)


def save_direction(direction: EditDirection, prefix: str) -> str:
    """Writes a numbered safetensors file under the output folder and returns its path within it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    file = f"{name}_{counter:05}_.safetensors"
    tensors = {"tokens": direction.tokens} | ({} if direction.pooled is None else {"pooled": direction.pooled})
    safetensors.torch.save_file({key: t.contiguous().cpu() for key, t in tensors.items()}, os.path.join(folder, file))
    return os.path.join(subfolder, file)


def load_direction(name: str) -> EditDirection:
    """Raises ValueError for a file that is damaged or holds something else."""
    path = direction_path(name)
    try:
        tensors = safetensors.torch.load_file(path)
        return EditDirection(tensors["tokens"], tensors.get("pooled"))
    except (KeyError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"LoadEditDirection: {path} is damaged or is no edit direction ({error}); save it again with Save Edit Direction"
        ) from None


def local_folders(kind: str) -> dict[str, Path]:
    """Every folder in the host's folder `kind`, such as models/captioners, by its name."""
    roots = [root for root in folder_paths.get_folder_paths(kind) if os.path.isdir(root)]
    return {entry.name: Path(entry.path) for root in reversed(roots) for entry in os.scandir(root) if entry.is_dir()}


def captioner_names() -> list[str]:
    """The toy captioner, the hub's BLIP models, and the local folders."""
    return [TOY_CAPTIONER, *HUB_CAPTIONERS, *sorted(local_folders(CAPTIONERS))]


def captioner_folder(name: str, toy_folder: Path) -> Path:
    """Local folder of a name from `captioner_names`; a hub model is downloaded into the hub's cache if it is not there yet."""
    if name == TOY_CAPTIONER:
        return toy_folder
    if name in HUB_CAPTIONERS:
        return Path(download(name, "AutoCaption", CAPTIONERS))
    try:
        return local_folders(CAPTIONERS)[name]
    except KeyError:
        raise FileNotFoundError(
            f'AutoCaption: there is no captioner folder "{name}"; put a BLIP model in transformers\' format into '
            f"{folder_paths.get_folder_paths(CAPTIONERS)[0]} or choose another"
        ) from None


def wordnet_names() -> list[str]:
    """The machine's own database, and the local folders."""
    return [OFF, INSTALLED, *sorted(local_folders(WORDNETS))]


def wordnet_folder(name: str) -> Path:
    """Folder of a name from `wordnet_names`."""
    if name == INSTALLED:
        found = next((path for path in map(Path, INSTALLED_WORDNETS) if path.is_dir()), None)
    else:
        found = local_folders(WORDNETS).get(name)
    if found is None:
        raise FileNotFoundError(
            f'there is no WordNet database "{name}"; on Debian and Ubuntu install the package wordnet-base, '
            "elsewhere put the folder dict of WordNet 3.0 (wordnet.princeton.edu) into "
            f"{folder_paths.get_folder_paths(WORDNETS)[0]}"
        )
    return found


def fill_mask_names() -> list[str]:
    """The hub's BERT models, and the local folders."""
    return [OFF, *HUB_FILL_MASKS, *sorted(local_folders(FILL_MASKS))]


def fill_mask_folder(name: str) -> Path:
    """Local folder of a name from `fill_mask_names`; a hub model is downloaded into the hub's cache if it is not there yet."""
    if name in HUB_FILL_MASKS:
        return Path(download(name, "PromptAugment", FILL_MASKS))
    try:
        return local_folders(FILL_MASKS)[name]
    except KeyError:
        raise FileNotFoundError(
            f'there is no BERT folder "{name}"; put a BERT model in transformers\' format into '
            f"{folder_paths.get_folder_paths(FILL_MASKS)[0]} or choose another"
        ) from None


def network_names(model_type: str) -> list[str]:
    """The hub's networks of this type, and the local folders in models/metrics that hold one."""
    return [*HUB_NETWORKS[model_type], *sorted(name for name, f in local_folders(METRICS).items() if _type(f) == model_type)]


def network_folder(name: str, model_type: str, tell: Tell) -> Path:
    """Local folder of a name from `network_names`; a hub network is downloaded into the hub's cache if it is not there yet."""
    if name in HUB_NETWORKS[model_type]:
        if not isinstance(try_to_load_from_cache(name, "model.safetensors"), str):
            tell(f"downloading {name} ({MEGABYTES[name]} MB) into the Hugging Face cache")
        return Path(download(name, "EditMetrics", METRICS))
    try:
        return local_folders(METRICS)[name]
    except KeyError:
        raise FileNotFoundError(
            f'there is no folder "{name}"; put a network in transformers\' format into '
            f"{folder_paths.get_folder_paths(METRICS)[0]} or choose another"
        ) from None


def lpips_trunk(net: str, tell: Tell) -> Path:
    """File with an LPIPS network's ImageNet weights, as torchvision publishes them."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(LPIPS_TRUNKS[net]).DEFAULT
    return published_file(weights.url, weights.meta["_file_size"], "lpips", tell)


def inception_file(tell: Tell) -> Path:
    """File with the weights of FID's Inception network, as torch-fidelity publishes them."""
    return published_file(INCEPTION_URL, INCEPTION_MEGABYTES, "fid", tell)


def published_file(url: str, megabytes: float, setting: str, tell: Tell) -> Path:
    """The file of this address, in models/metrics or in PyTorch's cache, where it is downloaded to.

    The end of its name is the start of its SHA-256, which a download must have. Raises OSError if it cannot be had.
    """
    file = os.path.basename(url)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (*map(Path, folder_paths.get_folder_paths(METRICS)), cache):
        if (folder / file).is_file():
            return folder / file
    tell(f"downloading {url} ({megabytes:.0f} MB) into {cache}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cache / file), hash_prefix=Path(file).stem.rpartition("-")[2])
    except Exception as error:
        raise OSError(
            f"{url} could not be downloaded ({error}); put the file into "
            f"{folder_paths.get_folder_paths(METRICS)[0]} or switch {setting} off"
        ) from error
    return cache / file


def _type(folder: Path) -> str | None:
    """What transformers' config.json in a folder says it is."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


class HostProgress(tqdm):
    """Shows the files of a download as the host's progress bar."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.host_bar = comfy.utils.ProgressBar(self.total or 1)

    def update(self, n=1):
        shown = super().update(n)
        self.host_bar.update_absolute(self.n, self.total or 1)
        return shown


def download(repo: str, node: str, kind: str) -> str:
    """Local folder of a model from the hub; `kind` is the host's folder where a copy could lie instead."""
    patterns = ["*.json", "*.txt", "model*.safetensors"]
    try:
        return snapshot_download(repo, allow_patterns=patterns, tqdm_class=HostProgress)
    except Exception as error:
        raise OSError(
            f"{node}: {repo} could not be downloaded ({error}); put it into a folder of "
            f"{folder_paths.get_folder_paths(kind)[0]} or choose another"
        ) from error
