"""Networks from local folders in transformers' format: whole, in float32, on the CPU.

transformers is handed settings and tensors and never hears of the folder. What else lies there, or stands in config.json beside
the network's own settings, may name code, attention kernels, quantisers, adapters or other repositories, which it would fetch.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Network = TypeVar("Network", bound=PreTrainedModel)
Part = TypeVar("Part", bound=PreTrainedTokenizerBase | BaseImageProcessor)
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)

BASE_SETTINGS = frozenset(inspect.signature(PretrainedConfig).parameters)
"""What every config takes: how outputs are packed, which classes it was saved from; nothing that shapes a network."""


def load_network(
    kind: type[Network], folder: str | Path, what: str, unused: tuple[str, ...] = (), arguments: tuple[object, ...] = ()
) -> Network:
    """A `kind` from a local `folder`, in float32 and evaluation mode, with no weight left random and none left over.

    `what` is its name in refusals. Tensors whose names begin with one of `unused` may be there and are not looked at: heads that
    a published network was trained with and `kind` does not have. `arguments` follow the config where `kind` is made. Raises
    OSError for a folder that holds nothing or another kind of network, or weights that are missing, left over, of other shapes
    than its config.json says, or not finite.
    """
    folder = Path(folder)
    shape = cast(type[PretrainedConfig], kind.config_class)
    settings = _settings(shape, folder, what)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in _weights(folder, what).items()
        if not name.startswith(unused) and not name.endswith(".position_ids")  # counts 0, 1, 2; older versions saved it
    }
    try:
        loaded: Any = kind.from_pretrained(
            None, *arguments, config=shape(**own_settings(shape, settings)), state_dict=tensors,
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
            ignore_mismatched_sizes=True, output_loading_info=True,  # what does not fit is told below
        )  # fmt: skip
    except Exception as error:
        raise OSError(f"the {what} in {folder} cannot be read: {first_line(error)}") from error
    network: Network = loaded[0]
    _refuse_misfits(loaded[1], f"the {what} in {folder}", kind.__name__)
    return network


def load_part(kind: type[Part], folder: str | Path, what: str) -> Part:
    """The tokenizer or image processor beside a network, of just this class. Raises OSError for files that cannot be read."""
    try:
        return cast(Part, kind.from_pretrained(folder, local_files_only=True))
    except Exception as error:
        raise OSError(f"the {what} in {folder} cannot be read: {first_line(error)}") from error


def load_tokenizer(kind: type[Tokenizer], folder: str | Path, what: str, network: PreTrainedModel) -> Tokenizer:
    """The tokenizer beside a network.

    Raises OSError if it knows no words, as one whose vocabulary is missing, or more than the network.
    """
    tokenizer = load_part(kind, folder, what)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise OSError(f"the {what} in {folder} is incomplete: its vocabulary is missing; get its files again")
    known: int = network.config.get_text_config().vocab_size
    if len(tokenizer) > known:
        raise OSError(f"the {what} in {folder} does not fit its vocabulary: it knows {known} of {len(tokenizer)} tokens")
    return tokenizer


def load_tensors(file: str | Path) -> dict[str, Tensor]:
    """Of a file of safetensors or of PyTorch's, of which nothing but tensors is unpickled.

    Raises OSError for a file that is missing, damaged, or holds anything else or a value that is not finite.
    """
    if not Path(file).is_file():
        raise OSError(f"{file} is missing")
    try:
        pickled = Path(file).suffix != ".safetensors"
        tensors = torch.load(file, "cpu", weights_only=True) if pickled else load_file(file)
        broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    except Exception as error:
        raise OSError(f"{file} is damaged or holds something else than tensors; get it again") from error
    if broken:
        raise OSError(f"{file} is damaged: {_first(broken)} holds NaN or infinite values; get it again")
    return tensors


def own_settings(kind: type[PretrainedConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that shape a network of this kind, as its class declares them, and the same of the configs within it."""
    own = set(inspect.signature(kind).parameters) - BASE_SETTINGS
    chosen = {name: value for name, value in settings.items() if name in own}
    for part, part_kind in kind.sub_configs.items():
        for name in (part, f"{part}_dict"):  # CLIP's published files say everything twice
            if name in settings:
                chosen[name] = own_settings(part_kind, settings[name])
    return chosen


def first_line(error: Exception) -> str:
    """What is wrong, of a message that goes on to give advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _settings(kind: type[PretrainedConfig], folder: Path, what: str) -> dict[str, Any]:
    """config.json, if it describes a network of this kind."""
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} holds no {what}: config.json is missing")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = settings.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise OSError(f"the {what} in {folder} cannot be read: config.json is damaged ({first_line(error)})") from error
    if found != kind.model_type:
        raise OSError(f'{folder} holds no {what}: its config.json is of model_type "{found}", not "{kind.model_type}"')
    return cast(dict[str, Any], settings)


def _weights(folder: Path, what: str) -> dict[str, Tensor]:
    """Of model.safetensors, or of the files that it is split into where it is large."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise OSError(f"the {what} in {folder} is incomplete: model.safetensors is missing; get its files again")
    return {name: tensor for file in files for name, tensor in load_tensors(file).items()}


def _refuse_misfits(info: Mapping[str, Any], network: str, kind: str) -> None:
    """By what transformers tells of loading, which goes on with random weights."""
    if left_over := sorted(info["unexpected_keys"]):
        raise OSError(f"{network} is another kind of network: a {kind} has no {_first(left_over)}")
    if missing := sorted(info["missing_keys"]):
        raise OSError(f"{network} is incomplete: {_first(missing)} is missing; get its files again")
    if resized := sorted(info["mismatched_keys"]):
        name, found, wanted = resized[0]
        raise OSError(f"{network} does not fit its config.json: {name} is {tuple(found)}, not {tuple(wanted)}")


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (one of {len(names)})"
