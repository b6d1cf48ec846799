"""What the guidance records of a run, against float64 recomputation at the latents that the run passed through."""

import math

import comfy.model_management
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from test_guider import EDITED, EULER, NEGATIVE, SOURCE, hooked
from test_nodes import WordClip
from test_nodes import graph as pipeline
from tiny import conditioning, randn, tiny_unet
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE

ABSOLUTE = GuidanceWeights(0.5, 0.05, relative=False, patchnce=PatchNCE(sizes=(1,)))
RELATIVE = GuidanceWeights(0.5, 0.3, patchnce=PatchNCE(sizes=(1,)))


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def inverted():
    """A hooked model, three noise levels, and two inverted latents with the way to them."""
    with torch.inference_mode():
        model = hooked(tiny_unet())
        sigmas = default_sigmas(model, 3)
        return model, sigmas, *invert(model, randn(2, 4, 8, 8), SOURCE, sigmas, None, 0, 0)


@pytest.fixture
def make_guider(inverted):
    def make(weights, start=0.0, end=1.0):
        model, _, _, path = inverted
        guider = ZeroConGuider(model, path, weights, start, end, 0)
        guider.inner_set_conds({"positive": EDITED, "negative": NEGATIVE, "source": SOURCE})
        guider.set_cfg(5.0)
        return guider

    return make


@pytest.fixture
def sample(inverted):
    """Runs a guider; returns its result and the latents at which the steps began."""

    def run(guider, callback=lambda *_: None, scale=1.0):
        _, sigmas, noise, _ = inverted
        starts = []
        keep = lambda step, denoised, x, total: (starts.append(x.clone()), callback(step))
        return guider.sample(torch.zeros_like(noise), scale * noise, EULER, sigmas, callback=keep, disable_pbar=True), starts

    return run


class Float64:
    """Both losses and their gradient on the network itself, sample by sample, by plain autograd."""

    def __init__(self):
        self.model = tiny_unet()
        self.unet = self.model.model.diffusion_model.double()
        self.unet.dtype = torch.float64
        self.cross, self.features = [], []
        for name, module in self.unet.named_modules():
            if name.endswith("attn2"):
                module.register_forward_pre_hook(self.read, with_kwargs=True)
            if name.endswith("attn1") and name.startswith("output_blocks"):
                module.register_forward_hook(lambda module, args, out: self.features.append(F.normalize(out[0], dim=-1)))

    def read(self, module, args, kwargs):
        q, k = (
            t[0].unflatten(-1, (module.heads, -1)).transpose(0, 1) for t in (module.to_q(args[0]), module.to_k(kwargs["context"]))
        )
        self.cross.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1))

    def shown(self, x, sigma, condition):
        self.cross, self.features = [], []
        timestep = self.model.get_model_object("model_sampling").timestep(sigma).double().view(1)
        self.unet(x / (1 + sigma.double() ** 2).sqrt(), timestep, context=condition[0][0].double())
        return self.cross, self.features

    def losses(self, x, latent, sigma, weights):
        """L_xa, L_cut, and the length of the move as a share of x's, for one sample."""
        maps, features = self.shown(latent.double(), sigma, SOURCE)
        x = x.double().clone().requires_grad_(True)
        edited_maps, edited_features = self.shown(x, sigma, EDITED)
        xa = sum((m - r).square().sum() / (2 * len(m)) for m, r in zip(edited_maps, maps, strict=True))
        terms = [
            F.cross_entropy(r.detach() @ e.T / 0.07, torch.arange(len(e))) for e, r in zip(edited_features, features, strict=True)
        ]
        cut = 18 * sum(terms) / len(terms)
        (gradient,) = torch.autograd.grad(weights.lambda_xa * xa + weights.lambda_cut * cut, x)
        return xa.item(), cut.item(), float((1 + sigma.double() ** 2) * gradient.norm() / x.detach().norm())


@torch.inference_mode(False)
def test_history_is_what_float64_finds_at_the_latents_of_the_run(inverted, make_guider, sample):
    _, sigmas, _, path = inverted
    with torch.inference_mode():
        guider = make_guider(ABSOLUTE)
        result, starts = sample(guider)
    truth, history = Float64(), guider.history(result)
    sigmas, latents = sigmas.clone(), [latent.clone() for latent in path.latents]
    levels = path.sigmas.tolist()
    assert len(history) == len(starts) == 3
    for step, start, sigma in zip(history, starts, sigmas, strict=False):
        latent = latents[levels.index(float(sigma))]
        with torch.enable_grad():
            found = torch.tensor([truth.losses(start[i : i + 1], latent[i : i + 1], sigma, ABSOLUTE) for i in range(2)]).mean(0)
        xa, cut, move = found.tolist()
        assert step == pytest.approx((float(sigma), xa, cut, 0.5 * xa, 0.05 * cut, move), rel=2e-3)


def test_a_relative_weight_is_one_factor_for_the_whole_run(make_guider, sample, inverted):
    guider = make_guider(RELATIVE)
    result, _ = sample(guider)
    history = guider.history(result)
    assert all(step.weighted_xa == pytest.approx(0.5 * step.xa) for step in history)
    shares = [step.weighted_cut / step.cut for step in history]
    assert shares == pytest.approx([shares[0]] * 3, rel=0.2) and shares[0] > 0  # a factor of each sample, means of both


def test_only_guided_steps_are_recorded(make_guider, sample, inverted):
    guider = make_guider(ABSOLUTE, end=0.5)
    result, _ = sample(guider)
    assert [step.sigma for step in guider.history(result)] == inverted[1][:2].tolist()


def test_runs_do_not_mix(make_guider, sample):
    guider, other = make_guider(ABSOLUTE), make_guider(ABSOLUTE)
    first, _ = sample(guider)
    before = guider.history(first)
    second, _ = sample(guider, scale=0.995)
    assert len(guider.history(second)) == len(before) and guider.history(second) != before
    for stranger in (guider.history, other.history):
        with pytest.raises(ValueError, match="a guider of its own"):
            stranger(first)
    assert sample(guider)[0].equal(first) and guider.history(first) == before


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_a_stopped_run_leaves_no_history(make_guider, sample, failure):
    guider = make_guider(ABSOLUTE)
    result, _ = sample(guider)

    def stop(step):
        if step == 1:
            raise failure()

    with pytest.raises(failure):
        sample(guider, stop)
    with pytest.raises(ValueError, match="a guider of its own"):
        guider.history(result)


def test_recording_keeps_numbers_alone(make_guider, sample):
    guider = make_guider(RELATIVE)
    result, _ = sample(guider)
    assert all(type(value) is float for step in guider.history(result) for value in step)
    assert not any(isinstance(value, torch.Tensor) for value in vars(guider).values())


# The node


def shown(run_graph, guider, latent):
    graph = {
        "node": {"class_type": "ZeroConGuidancePreview", "inputs": {"guider": ["guider", 0], "sampled": ["latent", 0]}},
        "guider": {"class_type": "TestValue", "inputs": {"key": "guider"}},
        "latent": {"class_type": "TestValue", "inputs": {"key": "latent"}},
    }
    graph |= {f"out{i}": {"class_type": "TestCapture", "inputs": {"value": ["node", i]}} for i in range(2)}
    return run_graph(graph, {"guider": guider, "latent": {"samples": latent}})


def test_the_node_shows_the_sum_and_draws_all(run_graph, make_guider, sample):
    guider = make_guider(RELATIVE)
    result, _ = sample(guider)
    run = shown(run_graph, guider, result)
    assert run.success, run.error
    assert run.captured["out0"] == {"loss": [s.weighted_xa + s.weighted_cut for s in guider.history(result)]}
    assert run.captured["out1"].shape == (1, 640, 1280, 3) and len(run.outputs["node"]["images"]) == 1


def test_in_the_pipeline_it_waits_for_the_sampler_and_follows_it(run_graph):
    """The guider stays cached while the sampler runs again on another latent, and what is shown is of that run."""
    values = {"clip": WordClip(), "model": tiny_unet(), "latent": {"samples": randn(1, 4, 8, 8)}}
    preview = {"class_type": "ZeroConGuidancePreview", "guider": ["guidance", 0], "sampled": ["sample", 0]}
    plot = {"class_type": "LossGraphNode", "loss": ["preview", 0], "filename_prefix": "loss"}
    scaled = {"class_type": "LatentMultiply", "samples": ["invert", 0]}
    losses = []
    for factor in (1.0, 0.995, 1.0):
        nodes = pipeline(
            preview=dict(preview), plot=dict(plot), scaled=scaled | {"multiplier": factor},
            sample={"latent_image": ["scaled", 0]}, result={"value": ["preview", 0]},
        )  # fmt: skip
        run = run_graph(nodes, values)
        assert run.success, run.error
        assert len(run.outputs["plot"]["images"]) == 1
        losses.append(run.captured["result"]["loss"])
    assert len(losses[0]) == 2 and losses[0] == losses[2] != losses[1]


def test_refusals(run_graph, make_guider, sample, inverted):
    model, _, noise, _ = inverted
    stock = comfy.samplers.CFGGuider(model)
    stock.set_conds(conditioning(1), conditioning(2))
    guided = make_guider(ABSOLUTE)
    cases = [
        (stock, noise, "this is a CFGGuider"),
        (guided, noise, "connect the output of its sampler"),
        (guided, sample(guided)[0] + 1, "connect the output of its sampler"),
    ]
    for guider, latent, said in cases:
        run = shown(run_graph, guider, latent)
        assert not run.success and run.error.startswith("Guidance Preview: ") and said in run.error, run.error
        assert "\n" not in run.error.strip() and not run.error.strip().endswith(".")


NEVER = {"weights": {"lambda_xa": 0.0, "lambda_cut": 0.0}, "window": {"start_percent": 0.9999, "end_percent": 1.0}}


@pytest.mark.parametrize("guidance", NEVER.values(), ids=NEVER.keys())
def test_where_nothing_was_guided_the_rest_of_the_graph_runs(run_graph, caplog, guidance):
    values = {"clip": WordClip(), "model": tiny_unet(), "latent": {"samples": randn(1, 4, 8, 8)}}
    preview = {"class_type": "ZeroConGuidancePreview", "guider": ["guidance", 0], "sampled": ["sample", 0]}
    plot = {"class_type": "LossGraphNode", "loss": ["preview", 0], "filename_prefix": "loss"}
    run = run_graph(
        pipeline(
            preview=preview, plot=plot, guidance=dict(guidance), curves={"class_type": "TestCapture", "value": ["preview", 1]}
        ),
        values,
    )
    assert run.success, run.error
    assert torch.isfinite(run.captured["result"]["samples"]).all() and run.captured["curves"].shape == (1, 640, 1280, 3)
    assert "Guidance Preview: no step was guided" in caplog.text
    assert "plot" not in run.outputs  # there is no curve to plot
