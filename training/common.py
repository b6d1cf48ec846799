"""What all training shares: initial weights, files written whole, and one resumable loop."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "training" / "runs"
WEIGHTS = ROOT / "zerocon_core" / "toyworld" / "weights"

log = logging.getLogger("training")

Loss = Callable[[torch.Generator], torch.Tensor]


def reset_weights(model: nn.Module, seed: int) -> None:
    """Initialise as torch would; the host's layers leave their weights undefined because it always loads them."""
    torch.manual_seed(seed)
    for module in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: an interrupt leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(path.suffix + ".part")
    write(scratch)
    scratch.chmod(0o644)
    os.replace(scratch, path)


def export(path: Path, state: dict[str, torch.Tensor], exact: tuple[str, ...] = ()) -> None:
    """Write a model's weights as they ship: floating-point ones in fp16, but for those that `exact` names."""
    tensors = {
        key: (value.half() if value.is_floating_point() and key not in exact else value).contiguous()
        for key, value in state.items()
    }
    write_atomically(path, lambda scratch: save_file(tensors, scratch))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


class Run:
    """A training run that lives in a checkpoint: weights, their moving average, optimiser and step."""

    def __init__(self, name: str, modules: dict[str, nn.Module], peak: float, decay: float = 0.999) -> None:
        self.path = RUNS / f"{name}.pt"
        self.modules, self.peak, self.decay = modules, peak, decay
        self.step = 0
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=peak, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
        if self.path.exists():
            self._load()

    def train(
        self,
        loss: Loss,
        steps: int,
        until: int | None = None,
        save_every: int = 250,
        after_save: Callable[[], None] | None = None,
    ) -> None:
        """Go on to the end of a schedule of `steps`, or to step `until` of it.

        Step i draws from a generator seeded with i: a run that was interrupted ends as any other does.
        """
        start, recent = time.monotonic(), 0.0
        end = steps if until is None else min(until, steps)
        while self.step < end:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.step, steps, self.peak)
            value = loss(torch.Generator().manual_seed(self.step))
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self._update_average()
            recent = float(value.detach()) if recent == 0.0 else 0.98 * recent + 0.02 * float(value.detach())
            self.step += 1
            if self.step % 100 == 0:
                log.info("%s step %d loss %.5f, %.0f s", self.path.stem, self.step, recent, time.monotonic() - start)
            if self.step % save_every == 0 or self.step == end:
                self._save()
                if after_save is not None:
                    self.use_average(after_save)

    def use_average(self, then: Callable[[], None]) -> None:
        """Call `then` while the modules hold the moving average of their weights."""
        current = [p.detach().clone() for p in self.parameters]
        _copy(self.average, self.parameters)
        with torch.no_grad():
            then()
        _copy(current, self.parameters)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average would remember the initial weights for long.
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        write_atomically(self.path, lambda path: torch.save(state, path))

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        log.info("continuing %s at step %d", self.path, self.step)


def _copy(source: Iterable[torch.Tensor], target: Iterable[torch.Tensor]) -> None:
    with torch.no_grad():
        for s, t in zip(source, target, strict=True):
            t.copy_(s)
