"""The loops on the toy world, faults in them, and what a fault may not change."""

import contextlib
import copy
import gc
import random
from collections.abc import Iterator
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import torch
from fuzz.sound import Values, sound_graph, toy_values
from in_process import GraphRunner, TestCapture, report_progress
from tiny import fingerprint, tensor_bytes
from torch.utils._python_dispatch import TorchDispatchMode

INTERRUPT = comfy.model_management.InterruptProcessingException
ERRORS = {
    "error": lambda: RuntimeError("injected"), "memory": lambda: torch.OutOfMemoryError("injected"), "cancel": INTERRUPT,
}  # fmt: skip
LOOPS = {
    "inversion": ("ZeroConDDIMInvert", {"lambda_ac": 1.0, "refinements": 1}),
    "guidance": ("ZeroConPatchNCEGuidance", {}),
    "guidance, checkpointed": ("ZeroConPatchNCEGuidance", {"checkpointing": True}),
    "CDS": ("ZeroConCDSOptimize", {"ids_steps": 1}),
    "CDS, checkpointed": ("ZeroConCDSOptimize", {"checkpointing": True}),
    "masks": ("ZeroConEditMask", {}),
    "word maps": ("ZeroConAttentionMapPreview", {}),
    "training": ("ZeroConSoftContrastiveTrain", {"steps": 2}),
    "training, not checkpointed": ("ZeroConSoftContrastiveTrain", {"gradient_checkpointing": False}),
    "direction": ("ZeroConEditDirection", {}),
}


class Operations(TorchDispatchMode):
    """Counts operations and raises `error` at number `at`, if there is one."""

    def __init__(self, at: int = 0, error: BaseException | None = None):
        super().__init__()
        self.at = at
        self.error = error
        self.count = 0
        self.backward: list[int] = []
        """Numbers of those that ran in a backward pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if torch._C._current_graph_task_id() != -1:
            self.backward.append(self.count)
        if self.count == self.at:
            raise self.error
        return func(*args, **kwargs or {})


class Fault(NamedTuple):
    loop: str
    place: str
    """operation, backward (an operation of a backward pass) or progress"""
    at: int
    kind: str


class Loop(NamedTuple):
    graph: dict[str, dict]
    operations: int
    """In a run without a fault."""
    backward: list[int]
    """Numbers of those in backward passes."""


@contextlib.contextmanager
def broken_progress(at: int, error: BaseException) -> Iterator[None]:
    """Raises where a loop tells of its progress for the `at`-th time."""
    told = []

    def hook(*args, **kwargs) -> None:
        told.append(None)
        if len(told) == at:
            raise error
        report_progress(*args, **kwargs)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(report_progress)


def loop_graph(loop: str) -> dict[str, dict]:
    """The node of the loop; what CDS edits is decoded behind it."""
    node_id, settings = LOOPS[loop]
    graph = copy.deepcopy(sound_graph(node_id))
    graph["node"]["inputs"] |= settings
    if node_id == "ZeroConCDSOptimize":
        graph["vae"] = {"class_type": "TestValue", "inputs": {"key": "vae"}}
        graph["decoded"] = {"class_type": "VAEDecode", "inputs": {"samples": ["node", 0], "vae": ["vae", 0]}}
        graph["seen"] = {"class_type": "TestCapture", "inputs": {"value": ["decoded", 0]}}
    return graph


def modes() -> dict:
    """What a thread has open."""
    return {
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "interrupted": comfy.model_management.processing_interrupted(),
    }


def state(values: Values) -> dict[str, dict]:
    """All that a run must leave as it was."""
    networks = {"model": values["model"], "clip": values["clip"].patcher, "vae": values["vae"].patcher}
    return {name: fingerprint(patcher) | hooks(patcher.model) for name, patcher in networks.items()} | {"modes": modes()}


def hooks(model: torch.nn.Module) -> dict[str, list[int]]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {kind: [len(getattr(module, kind)) for module in model.modules()] for kind in kinds}


class Bench:
    """The loops on the toy world, and what a fault may not change.

    All that is there before the first fault is frozen: the collector, which looks for what is left, then has less to look at.
    """

    def __init__(self) -> None:
        self.values = toy_values(GraphRunner())
        self.loops = {loop: self.measured(loop_graph(loop)) for loop in LOOPS}
        self.expected = self.results()
        self.before = state(self.values)
        gc.collect()
        gc.freeze()
        self.bytes = tensor_bytes()

    def measured(self, graph: dict[str, dict]) -> Loop:
        with Operations() as operations:
            run = GraphRunner()(graph, self.values)
        assert run.success, run.error
        return Loop(graph, operations.count, operations.backward)

    def draw(self, count: int, seed: int = 0) -> Iterator[Fault]:
        """`count` faults, the loops by turns."""
        chance = random.Random(seed)
        for number in range(count):
            name = [*LOOPS][number % len(LOOPS)]
            loop = self.loops[name]
            places = {"progress": [1], "operation": range(1, loop.operations + 1), "backward": loop.backward or [1]}
            [place] = chance.choices([*places], [1, 6, 3])
            yield Fault(name, place, chance.choice(places[place]), chance.choice([*ERRORS]))

    @staticmethod
    def broken(fault: Fault) -> contextlib.AbstractContextManager:
        """Where the fault happens."""
        error = ERRORS[fault.kind]()
        return broken_progress(fault.at, error) if fault.place == "progress" else Operations(fault.at, error)

    def inject(self, fault: Fault) -> list[str]:
        """What differs after the fault; nothing, if all is well."""
        with self.broken(fault):
            GraphRunner()(self.loops[fault.loop].graph, self.values)
        TestCapture.captured = {}
        while gc.collect():  # what autograd's graph holds is found only when the frames that held the graph are gone
            pass
        after, left = state(self.values), tensor_bytes() - self.bytes
        wrong = [f"{name} {key}" for name in after for key in after[name] if after[name][key] != self.before[name][key]]
        return wrong + [f"{left} bytes of tensors kept"] * (left > 0)

    def results(self) -> dict[str, torch.Tensor]:
        """The latents of the loops, to compare bit by bit."""
        found = {}
        for loop in ("inversion", "guidance", "CDS"):
            captured = GraphRunner()(self.loops[loop].graph, self.values).captured
            found[loop] = captured.get("sampled", captured["output 0"])["samples"].clone()
        return found
