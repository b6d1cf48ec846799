"""Delta and contrastive denoising score inside the host."""

from collections import Counter

import comfy.model_management
import comfy.samplers
import nodes
import pytest
import torch
import torch.nn.functional as F
from comfy.model_base import ModelType
from graphs import cds_graph as graph
from tiny import FAMILIES, conditioning, counted, randn, relative_error, tensor_bytes, tiny_unet
from zerocon_pack.bridge.loops.cds import CDSSettings, mask_for, optimize
from zerocon_pack.bridge.loops.hosted import guider_of
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.facts import HookedLayers, decoder_self_attention
from zerocon_pack.zerocon_core.methods.cds import CDSWeights
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE

SOURCE, TARGET, OTHER, NEGATIVE = (conditioning(seed) for seed in (1, 2, 3, 4))
TIMESTEPS = torch.tensor([600, 80, 930, 301, 455])
FEW = CDSWeights(w_cut=30.0, patchnce=PatchNCE(patches=8))


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def edit(model, latent, weights=FEW, targets=(TARGET,), timesteps=TIMESTEPS, mask=None, cfg=3.0, ids_steps=0, seed=0, **options):
    layers = decoder_self_attention(model.get_model_object("diffusion_model"))
    options = {"step_size": 0.3} | options
    settings = CDSSettings(timesteps, layers, weights, cfg, ids_steps=ids_steps, seed=seed, **options)
    edited, _ = optimize(model, latent, SOURCE, list(targets), NEGATIVE, settings, mask)
    return edited if len(targets) > 1 else edited[0]


def published_loop(family: str, z_src: torch.Tensor, noises, direction: str, step_size: float, w_cut: float, cfg: float):
    """CDS as the papers write it, through the whole U-Net in float64 with plain autograd, one sample.

    z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps; g = eps^w(z_t, target) - eps^w(z_t^src, source); L_cut is the sum over the
    self-attention layers of the decoder and patch sizes 1 and 2 of PatchNCE, patch by patch through cross_entropy, on the mean
    over those terms times 18.
    """
    patcher = tiny_unet(family=family)
    unet = patcher.model.diffusion_model.double()
    unet.dtype = torch.float64
    predicts_v = FAMILIES[family][1] == ModelType.V_PREDICTION
    sampling, seen = patcher.get_model_object("model_sampling"), []
    layers = [m for name, m in unet.output_blocks.named_modules() if name.endswith("attn1")]
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out))

    def eps(x_vp, alpha_bar, t, condition):
        seen.clear()
        out = unet(x_vp, t.double().view(1), context=condition[0][0].double())
        return (1 - alpha_bar).sqrt() * x_vp + alpha_bar.sqrt() * out if predicts_v else out

    def under_cfg(x_vp, alpha_bar, t, condition):
        unconditional = eps(x_vp.detach(), alpha_bar, t, NEGATIVE).detach()
        conditional = eps(x_vp, alpha_bar, t, condition)
        return unconditional + cfg * (conditional.detach() - unconditional), list(seen)

    def patches(tokens, size):
        height, width = z_src.shape[2:]
        while height * width > tokens.shape[1]:
            height, width = -(-height // 2), -(-width // 2)
        maps = tokens[0].T.reshape(-1, height, width)
        squares = [
            maps[:, i : i + size, j : j + size].mean((1, 2))
            for i in range(0, height - size + 1, size)
            for j in range(0, width - size + 1, size)
        ]
        return torch.stack([square / square.norm() for square in squares])

    def nce(edited, source):
        anchor, other = (source, edited) if direction == "cds" else (edited, source)
        logits = anchor @ other.T / 0.07
        return F.cross_entropy(logits, torch.arange(len(logits)))

    z = z_src.double()
    for noise, t in zip(noises, TIMESTEPS, strict=True):
        alpha_bar = 1 / (1 + sampling.sigma(t).double() ** 2)
        noised = alpha_bar.sqrt() * z_src.double() + (1 - alpha_bar).sqrt() * noise
        with torch.no_grad():
            g_source, reference = under_cfg(noised, alpha_bar, t, SOURCE)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            g_target, features = under_cfg(alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise, alpha_bar, t, TARGET)
            pairs = list(zip(features, reference, strict=True))
            terms = [nce(patches(edited, size), patches(source, size)) for edited, source in pairs for size in (1, 2)]
            (gradient,) = torch.autograd.grad(18 * sum(terms) / len(terms), z)
        positions = z.shape[2] * z.shape[3]
        z = z.detach() - step_size * (g_target - g_source + w_cut * positions / 2000 * gradient)
    return z


@pytest.mark.parametrize("direction", ["cds", "cut"])
@pytest.mark.parametrize("family", ["SD1.x", "SD2.x"])
@torch.inference_mode(False)
def test_five_iterations_agree_with_a_float64_transcription(family, direction):
    model, latent, draws = tiny_unet(family=family), randn(1, 4, 12, 8), torch.Generator().manual_seed(7)
    noises = [torch.randn(4, 12, 8, generator=draws).double()[None] for _ in TIMESTEPS]
    with torch.inference_mode():
        weights = CDSWeights(w_cut=20.0, patchnce=PatchNCE(direction=direction))
        result = edit(model, latent, weights, seed=7)
    scale = model.model.latent_format.scale_factor

    def published(w_cut):
        return published_loop(family, latent * scale, noises, direction, 0.3, w_cut, 3.0) / scale

    expected = published(20.0)
    move = lambda z: z.double() - latent.double()
    assert relative_error(move(published(0.0)), move(expected)) > 0.05, "the contrast must matter"
    assert relative_error(move(result), move(expected)) < 1e-4


class DeltaLoop(comfy.samplers.Sampler):
    """DDS written on the host's own sampling function."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        options, conds, model = extra_args["model_options"], model_wrap.conds, model_wrap.inner_model
        z, draws = latent_image.clone(), torch.Generator().manual_seed(0)
        for sigma in sigmas:
            eps, moved = torch.randn(z.shape[1:], generator=draws), []
            for clean, cond in ((z, "target 0"), (latent_image, "source")):
                x = clean + sigma * eps
                denoised = comfy.samplers.sampling_function(
                    model, x, sigma * torch.ones(len(z)), conds["negative"], conds[cond], model_wrap.cfg, options
                )
                moved.append((x - denoised) / sigma)
            z = z - 0.3 * (moved[0] - moved[1])
        return z


@pytest.mark.parametrize("family", FAMILIES)
def test_without_contrast_it_is_delta_denoising_score_bit_for_bit(family):
    model, latent = tiny_unet(family=family), randn(2, 4, 8, 10)
    guider = guider_of(model, 3.0, **{"source": SOURCE, "negative": NEGATIVE, "target 0": TARGET})
    sigmas = model.get_model_object("model_sampling").sigma(TIMESTEPS)
    expected = guider.sample(torch.zeros_like(latent), latent, DeltaLoop(), sigmas, disable_pbar=True)
    assert torch.equal(edit(model, latent, CDSWeights(w_cut=0.0)), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options, no_grad, grad",
    [
        (dict(), 3, 1),
        (dict(targets=(TARGET, OTHER)), 2 + 2, 2),
        (dict(cfg=1.0), 1, 1),
        (dict(weights=CDSWeights(w_cut=0.0)), 4, 0),
        (dict(ids_steps=3), 3, 1 + 3 * 2),
    ],
    ids=["CDS", "two targets", "no CFG", "DDS", "IDS"],
)
def test_passes_of_an_iteration(family, options, no_grad, grad):
    model, passes = counted(tiny_unet(family=family))
    edit(model, randn(1, 4, 8, 8), **options)
    assert passes == Counter({"no grad": no_grad * len(TIMESTEPS), "grad": grad * len(TIMESTEPS)})


def test_masks():
    model, latent = tiny_unet(), randn(2, 4, 8, 8)
    left = torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1
    whole = edit(model, latent)
    assert torch.equal(edit(model, latent, mask=torch.ones_like(left)), whole)
    for half in edit(model, latent, mask=left, targets=(TARGET, OTHER)):
        assert torch.equal(half[..., 4:], latent[..., 4:])
        assert relative_error(half[..., :4], latent[..., :4]) > 0.01


def test_each_sample_of_a_batch_is_edited_inside_its_own_mask():
    model, latent = tiny_unet(), randn(3, 4, 8, 8)
    masks = torch.zeros(3, 32, 32)
    masks[0, :16], masks[1, :, 16:], masks[2, 16:, :16] = 1, 1, 1
    moved = (edit(model, latent, mask=mask_for(latent, [masks])) != latent).any(1)
    assert torch.equal(moved, masks[:, ::4, ::4] == 1)


def test_same_seed_same_bits_and_another_seed_another_edit():
    model, latent = tiny_unet(), randn(1, 4, 16, 16)
    first = edit(model, latent, seed=1)
    assert torch.equal(first, edit(model, latent, seed=1))
    assert not torch.equal(first, edit(model, latent, seed=2))


@pytest.mark.parametrize("shape", [(13, 10), (8, 24)])
def test_batches_and_targets_are_runs_of_one(shape):
    model, latents = tiny_unet(), randn(2, 4, *shape)
    edited = edit(model, latents, targets=(TARGET, OTHER))
    for both, target in zip(edited, (TARGET, OTHER), strict=True):
        assert torch.equal(both, edit(model, latents, targets=(target,)))
        for i in range(2):
            [alone] = edit(model, latents[i : i + 1], targets=(target,))
            assert relative_error(both[i] - latents[i], alone - latents[i]) < 1e-4


def test_checkpointing_changes_memory_alone():
    def run(checkpointing):
        saved = Counter()

        def keep(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # the result of an operation would keep the operation, and that the result

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            edited = edit(tiny_unet(), randn(1, 4, 16, 12), timesteps=TIMESTEPS[:1], checkpointing=checkpointing)
        return edited, sum(saved.values())

    (plain, much), (checkpointed, little) = run(False), run(True)
    assert relative_error(checkpointed, plain) < 1e-6
    assert little < 0.6 * much


@pytest.mark.parametrize("weights", [FEW, CDSWeights(w_cut=0.0)])
def test_weights_in_half_precision(weights):
    with torch.inference_mode():
        half = tiny_unet(torch.float16)
    rounded = tiny_unet()
    for parameter in rounded.model.diffusion_model.parameters():
        parameter.copy_(parameter.half().float())
    latent = randn(1, 4, 8, 8)
    result = edit(half, latent, weights)
    assert result.dtype == torch.float32
    assert relative_error(result - latent, edit(rounded, latent, weights) - latent) < 1e-4


def test_nothing_of_an_iteration_outlives_it(monkeypatch):
    measured = []
    monkeypatch.setattr(
        "zerocon_pack.bridge.loops.cds.prepare_callback", lambda *args: lambda *seen: measured.append(tensor_bytes())
    )
    edit(tiny_unet(), randn(1, 4, 16, 16), timesteps=torch.arange(100, 900, 100))
    assert len(measured) == 8 and max(measured[2:]) <= measured[1] * 1.01


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_a_stopped_run_leaves_the_model_as_it_was(failure, monkeypatch):
    model, latent = tiny_unet(), randn(1, 4, 8, 8)
    before, options = edit(model, latent), repr(model.model_options)

    def stop(step, *_):
        if step == 1:
            raise failure()

    with monkeypatch.context() as patch, pytest.raises(failure):
        patch.setattr("zerocon_pack.bridge.loops.cds.prepare_callback", lambda *args: stop)
        edit(model, latent)
    assert repr(model.model_options) == options
    assert not any("forward" in module.__dict__ for module in model.model.modules())
    assert torch.equal(edit(model, latent), before)


def test_patches_of_the_model_decide_the_score():
    """CFG of the host, with everything that other nodes hung on it."""
    model, latent, seen = tiny_unet().clone(), randn(1, 4, 8, 8), []

    def post_cfg(args):
        seen.append(args["cond_scale"])
        return args["cond_denoised"]

    expected = edit(tiny_unet(), latent, cfg=1.0)
    model.set_model_sampler_post_cfg_function(post_cfg)
    assert relative_error(edit(model, latent, cfg=7.0), expected) < 1e-5
    assert seen == [7.0] * (3 + 2 * len(TIMESTEPS)), "three times before the first iteration, to see that it answers the same"


def patched_by(name: str, **inputs):
    """A model with a node of the host on it."""
    return nodes.NODE_CLASS_MAPPINGS[name].execute(tiny_unet(), **inputs).args[0]


@pytest.mark.parametrize(
    "node, inputs",
    [
        ("NAGuidance", dict(nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)),
        ("PerturbedAttentionGuidance", dict(scale=3.0)),
        ("FreeU_V2", dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
        ("APG", dict(eta=1.0, norm_threshold=5.0, momentum=0.0)),
        ("TomePatchModel", dict(ratio=0.5)),
    ],
)
def test_equal_prompts_do_not_move_whatever_is_on_the_model(node, inputs):
    """Source and target are asked in the same way, with gradients on one side and without on the other."""
    kind = nodes.NODE_CLASS_MAPPINGS.get(node)
    if kind is None or not hasattr(kind, "execute"):
        pytest.skip(f"this host has no {node} of the kind that is called here")
    model, latent = patched_by(node, **inputs), randn(1, 4, 16, 12)
    indifferent = CDSWeights(w_cut=3.0, patchnce=PatchNCE(temperature=1e9))  # passes with gradients, but no contrast
    assert relative_error(edit(model, latent, indifferent), latent) > 0.1, "another prompt must matter"
    for weights in (indifferent, CDSWeights(w_cut=0.0)):
        assert relative_error(edit(model, latent, weights, (SOURCE,)), latent) < 1e-3


def test_what_answers_differently_each_time_is_refused_by_name():
    kind = nodes.NODE_CLASS_MAPPINGS.get("APG")
    if kind is None or not hasattr(kind, "execute"):
        pytest.skip("this host has no APG of the kind that is called here")
    model = patched_by("APG", eta=1.0, norm_threshold=5.0, momentum=0.5)
    with pytest.raises(ValueError, match=r"does not answer the same twice.*one of nodes_apg\.APG"):
        edit(model, randn(1, 4, 16, 12))


# The node


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_unet()


@pytest.fixture
def values(model):
    latent = {"samples": randn(1, 4, 8, 8), "kept": 1}
    return {"model": model, "latent": latent, "source": SOURCE, "target": TARGET, "negative": NEGATIVE}


def test_the_node_runs_and_reports(run_graph, values):
    run = run_graph(graph(), values)
    assert run.success, run.error
    assert run.captured["result"]["kept"] == 1 and run.captured["result"]["samples"].shape == (1, 4, 8, 8)
    assert len(run.captured["loss"]["loss"]) == 3
    assert any("progress" in str(event) for event, _ in run.messages)


def test_step_rules(run_graph, values):
    fixed = run_graph(graph(cds=dict(step_size=0.05 * 64)), values).captured["result"]["samples"]
    authors = run_graph(graph(cds=dict(step_rule="authors", step_size=0.05)), values).captured["result"]["samples"]
    assert relative_error(authors - values["latent"]["samples"], fixed - values["latent"]["samples"]) < 1e-4


def test_hooked_layers_are_read(run_graph, values):
    hooks = dict(class_type="ZeroConAttentionHookedUNet", model=["model", 0], cross_attention="all", max_side=0)
    samples = {}
    for part in ("decoder", "encoder"):
        run = run_graph(graph(cds=dict(model=["hooks", 0]), hooks=hooks | dict(self_attention=part)), values)
        samples[part] = run.captured["result"]["samples"]
    assert torch.equal(samples["decoder"], run_graph(graph(), values).captured["result"]["samples"])
    assert not torch.equal(samples["decoder"], samples["encoder"])


def test_mask_and_noise_mask_meet_at_the_size_of_the_latent(run_graph, values):
    top, left = torch.zeros(1, 64, 64), torch.zeros(1, 16, 16)
    top[:, :32], left[..., :8] = 1, 1
    latent = values["latent"] | {"noise_mask": left}
    masked = graph(cds=dict(mask=["mask", 0]), mask=dict(class_type="TestValue", key="mask"))
    edited = run_graph(masked, values | {"latent": latent, "mask": top}).captured["result"]["samples"]
    moved = (edited - latent["samples"]).abs().sum((0, 1)) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(moved, expected)


def test_a_mask_of_zeros_returns_the_source_and_says_so(run_graph, values, caplog):
    latent = values["latent"] | {"noise_mask": torch.zeros(1, 8, 8)}
    plot = dict(class_type="LossGraphNode", loss=["cds", 1], filename_prefix="loss")
    run = run_graph(graph(plot=plot), values | {"latent": latent})
    assert run.success, run.error
    assert torch.equal(run.captured["result"]["samples"], latent["samples"])
    assert "mask is 0 everywhere" in caplog.text


class Listed:
    """Hands out a list, and puts a list together, so that graphs can fan out."""

    RETURN_TYPES = ("*",)
    CATEGORY = "tests"


class Split(Listed):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": ("*", {})}})
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "split"

    def split(self, value):
        return (value,)


class Join(Listed):
    INPUT_TYPES = Split.INPUT_TYPES
    INPUT_IS_LIST = True
    FUNCTION = "join"

    def join(self, value):
        return (value,)


@pytest.fixture
def run_lists(run_graph, values, monkeypatch):
    """Runs the node with lists at the inputs `lists`; what it hands on, as lists."""
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Split", Split)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Join", Join)

    def run(**lists):
        split = {f"{name}s": dict(class_type="Split", value=[name, 0]) for name in lists}
        changes = {"image_latent" if name == "latent" else name: [f"{name}s", 0] for name in lists}
        join = {f"all {i}": dict(class_type="Join", value=["cds", i]) for i in range(2)}
        ends = dict(result=dict(value=["all 0", 0]), loss=dict(value=["all 1", 0]))
        result = run_graph(graph(cds=changes, **split, **join, **ends), values | lists)
        assert result.success, result.error
        return result.captured["result"], result.captured["loss"]

    return run


def test_a_list_of_targets_is_one_run_with_a_result_each(run_graph, run_lists, values):
    model, passes = counted(values["model"])
    values["model"] = model
    edited, losses = run_lists(target=[TARGET, OTHER])
    assert passes == {"no grad": 3 * (2 + 2), "grad": 3 * 2}
    assert len(edited) == len(losses) == 2
    for i, target in enumerate((TARGET, OTHER)):
        alone = run_graph(graph(), values | {"target": target}).captured
        assert torch.equal(edited[i]["samples"], alone["result"]["samples"]) and losses[i] == alone["loss"]


def test_lists_of_images_are_taken_item_by_item(run_graph, run_lists, values):
    latents = [values["latent"], {"samples": randn(2, 4, 10, 8, seed=5)}]
    edited, losses = run_lists(latent=latents, target=[TARGET, OTHER])
    assert len(edited) == len(losses) == 2
    for i, target in enumerate((TARGET, OTHER)):
        alone = run_graph(graph(), values | {"target": target, "latent": latents[i]}).captured["result"]["samples"]
        assert torch.equal(edited[i]["samples"], alone)


REFUSALS = {
    "same prompts": (dict(target={"key": "source"}), {}, ["same prompt"]),
    "no timesteps": (dict(cds={"min_timestep": 0.5, "max_timestep": 0.499}), {}, ["empty", "0.5 to 0.499"]),
    "patch sizes": (dict(cds={"patch_sizes": "0"}), {}, ["patch_sizes"]),
    "batch": (dict(), {"target": [[randn(2, 77, 64), {}]]}, ["target", "batch of 2", "latent of 1"]),
    "video": (dict(), {"latent": {"samples": randn(1, 4, 2, 8, 8)}}, ["image latents"]),
    "not finite": (dict(), {"latent": {"samples": torch.full((1, 4, 8, 8), float("nan"))}}, ["NaN"]),
    "diverges": (dict(), {"target": [[torch.full((1, 77, 64), 3e38), {}]]}, ["iteration 1", "target's score"]),
}


@pytest.mark.parametrize("changes, bad, said", REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_one_sentence_and_the_next_run_works(run_graph, values, changes, bad, said):
    run = run_graph(graph(**changes), values | bad)
    assert not run.success and run.error.startswith("CDS Optimize: ") and "\n" not in run.error.strip()
    assert all(part in run.error for part in said), run.error
    assert run_graph(graph(), values).success


def test_contrast_without_layers_is_refused(run_graph, values, model):
    none = hook_layers(model, HookedLayers(frozenset(), frozenset()))
    run = run_graph(graph(), values | {"model": none})
    assert run.error.startswith("CDS Optimize: w_cut is 3, but no self-attention layer of BaseModel is read; choose layers in")
    assert run_graph(graph(cds=dict(w_cut=0.0)), values | {"model": none}).success
