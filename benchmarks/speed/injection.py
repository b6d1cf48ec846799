"""Seconds of a step with attention injection beside those of the same three passes without any."""

import comfy.samplers
import torch
from zerocon_pack.bridge.loops.injection import BlendWords, InjectionGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas
from zerocon_pack.zerocon_core.methods.injection import MasaCtrl, Method, PlugAndPlay, PromptToPrompt, WordEdit
from zerocon_pack.zerocon_core.methods.inversion import Trajectory

from .shapes import TOKENS, Shape
from .timing import Timing, timed

CFG = 7.5
EULER = comfy.samplers.sampler_object("euler")
UNIT = "a step of the host under CFG, source in the batch"
BLENDED = BlendWords({"source": [2], "positive": [2]})


def measure(shape: Shape, steps: int, rounds: int) -> Timing:
    run = InjectedStep(shape, steps)
    ways = {
        UNIT: run.plain,
        "Prompt-to-Prompt": lambda: run.injected(PromptToPrompt(1, 1)),
        "Prompt-to-Prompt, local blend": lambda: run.injected(PromptToPrompt(1, 1), BLENDED),
        "Plug-and-Play": lambda: run.injected(PlugAndPlay(1, 1)),
        "MasaCtrl": lambda: run.injected(MasaCtrl(0)),
    }
    return timed(f"a step of attention injection, {shape}", ways, rounds, dict.fromkeys(ways, steps))


class BatchOfThree(comfy.samplers.CFGGuider):
    """The host's guider, with the source's prompt in its batch."""

    def predict_noise(self, x, timestep, model_options, seed=None):
        def passes(args: dict) -> list[torch.Tensor]:
            conds = [*args["conds"], self.conds["source"]]
            return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])[:2]

        return super().predict_noise(x, timestep, model_options | {"sampler_calc_cond_batch_function": passes}, seed)


class InjectedStep:
    """Each way over the same steps from the same latent."""

    def __init__(self, shape: Shape, steps: int) -> None:
        self.model = shape.model()
        names = ("source", "positive", "negative")
        self.conditionings = dict(zip(names, shape.conditionings(3), strict=True))
        self.x = shape.latent() * 14
        self.sigmas = default_sigmas(self.model, 1000 // 20)[: steps + 1]
        self.trajectory = Trajectory(self.sigmas, [self.model.model.process_latent_in(self.x)] * len(self.sigmas))

    def plain(self) -> None:
        self.sample(BatchOfThree(self.model))

    def injected(self, method: Method, blend: BlendWords | None = None) -> None:
        words = WordEdit.replace(TOKENS) if isinstance(method, PromptToPrompt) else None
        self.sample(InjectionGuider(self.model, self.trajectory, method, words, blend))

    @torch.inference_mode()
    def sample(self, guider: comfy.samplers.CFGGuider) -> None:
        guider.inner_set_conds(self.conditionings)
        guider.set_cfg(CFG)
        guider.sample(torch.zeros_like(self.x), self.x, EULER, self.sigmas, disable_pbar=True)
