"""What other nodes put into a model: their names, and what passes that are compared or learned from cannot do with."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, product
from types import ModuleType

import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor


def name_of(function: Callable) -> str:
    """The file and the node or function that `function` is of: nodes_tomesd.TomePatchModel."""
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return ".".join((*function.__module__.replace("\\", "/").split("/")[-1:], function.__qualname__.split(".")[0]))


def acting_names(model_options: dict) -> list[str]:
    """What other nodes put into the model to act in its passes or in CFG."""
    patches = model_options.get("transformer_options", {})
    functions = [
        *chain.from_iterable(patches.get("patches", {}).values()),
        *chain.from_iterable(blocks.values() for blocks in patches.get("patches_replace", {}).values()),
        *model_options.get("sampler_pre_cfg_function", []),
        *model_options.get("sampler_post_cfg_function", []),
        *(model_options[key] for key in ("sampler_cfg_function", "model_function_wrapper") if key in model_options),
    ]
    return sorted({name_of(function) for function in functions})


CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
"""The host's nodes that answer from what they kept of an earlier pass, by the key of their wrappers."""


def repeatable(model_options: dict) -> dict:
    """A copy of `model_options` whose passes are all run, and give the same to the same.

    The host's caches, which take passes for the steps of one sampling, are left out.
    """
    model_options = with_one_chance(model_options)
    wrappers = model_options["transformer_options"]["wrappers"]
    for kind, key in product((WrappersMP.CALC_COND_BATCH, WrappersMP.DIFFUSION_MODEL, WrappersMP.PREDICT_NOISE), CACHES):
        wrappers.get(kind, {}).pop(key, None)
    return model_options


def with_one_chance(model_options: dict) -> dict:
    """A copy of `model_options` in whose passes patches that leave something to chance (ToMe) meet the same each time."""
    model_options = create_model_options_clone(model_options)
    wrappers = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    if acting_names(model_options):
        wrappers.setdefault(WrappersMP.APPLY_MODEL, {})["zerocon"] = [pass_of_one_chance]
    return model_options


def pass_of_one_chance(executor: Callable[..., Tensor], x: Tensor, *args, **kwargs) -> Tensor:
    """A pass with the random numbers of every other one; those that come next outside of it stay the same."""
    with kept_chance(x.device):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all other devices too
        if x.device.type != "cpu":
            torch.get_device_module(x.device).manual_seed(0)
        return executor(x, *args, **kwargs)


def chance_of_now(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What opens a context in which the random numbers are those that come next now; they are as before when it closes."""
    now = [place.get_rng_state() for place in places_of_chance(device)]

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with kept_chance(device):
            for place, state in zip(places_of_chance(device), now, strict=True):
                place.set_rng_state(state)
            yield

    return context


@contextlib.contextmanager
def kept_chance(device: torch.device) -> Iterator[None]:
    """Random numbers that come next on the CPU and on `device` are as before when it closes."""
    before = [place.get_rng_state() for place in places_of_chance(device)]
    try:
        yield
    finally:
        for place, state in zip(places_of_chance(device), before, strict=True):
            place.set_rng_state(state)


def places_of_chance(device: torch.device) -> list[ModuleType]:
    """The modules that keep the state of random numbers for the CPU and for the current `device`."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def check_whole(model_options: dict) -> None:
    """Raises ValueError where other nodes have the host run a pass on one part of the latent after the other."""
    if model_options.get("context_handler") is not None:
        raise ValueError(
            "context windows run the model on one part of the latent after the other, and what is read or learned here is the "
            "whole; take the model before the Context Windows node"
        )


def check_every_step(model: ModelPatcher) -> None:
    """Raises ValueError where other nodes leave out whole steps of a sampler, and with them what is done at each."""
    for key, name in CACHES.items():
        if model.get_wrappers(WrappersMP.PREDICT_NOISE, key):
            raise ValueError(f"{name} leaves out steps of the sampler, and the guidance with them; remove it from the model")
