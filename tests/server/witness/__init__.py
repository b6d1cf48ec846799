"""A pack of two nodes for the server under test: what its process holds, and the exact bits of what a graph makes."""

import gc
import hashlib
import json

import torch


class AnyType(str):
    """A socket that links to every other one."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def tensors_of(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


class Bits:
    """Shows the SHA-256 of every tensor in a value."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": (AnyType("*"), {})}})
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"
    CATEGORY = "tests"

    def show(self, value: object) -> dict:
        digest = hashlib.sha256()
        for tensor in tensors_of(value):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return {"ui": {"text": [digest.hexdigest()]}}


class Memory:
    """Shows number and bytes of all tensors of the process, and its resident memory in kB."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"number": ("INT", {"default": 0})}})
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"
    CATEGORY = "tests"

    def show(self, number: int) -> dict:
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        with open("/proc/self/status", encoding="ascii") as status:
            resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        return {"ui": {"text": [json.dumps({"tensors": len(tensors), "bytes": sum(storages.values()), "rss": resident})]}}


NODE_CLASS_MAPPINGS = {"WitnessBits": Bits, "WitnessMemory": Memory}
