"""What other nodes put into a model acts in passes with gradients as in those that they are compared with, or is refused."""

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from test_gradients_swapped import probed
from tiny import WIDTH, conditioning, fingerprint, randn, relative_error, tiny_unet
from zerocon_pack.bridge.loops.cds import scorer
from zerocon_pack.bridge.loops.hosted import Run, guider_of, run_hosted
from zerocon_pack.bridge.model.attention import differentiable_options, observe
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers

X = randn(1, 4, 16, 12, seed=1)
SIGMA = torch.tensor([1.5])
CONTEXT = randn(1, 7, WIDTH, seed=2)


def layers_of(model) -> HookedLayers:
    layers = frozenset(transformer_layers(model.diffusion_model))
    return HookedLayers(layers, layers)


def seen(model, x: torch.Tensor, differentiable: bool = True):
    """What all layers show."""
    cond = [{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(CONTEXT)}, "uuid": "a"}]
    model.pre_run()
    try:
        return observe(model.model, cond, x, SIGMA, model.model_options, layers_of(model.model), differentiable)
    finally:
        model.cleanup()


def gradient_of_features(model) -> torch.Tensor:
    x = X.clone().requires_grad_(True)
    return torch.autograd.grad(sum(f.square().sum() for f in seen(model, x).self_attention.values()), x)[0]


def with_override(override):
    model = tiny_unet()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def halved(func, q, *args, **kwargs):
    """An override that changes what the model computes, around whatever attention there is."""
    return func(q, *args, **kwargs) / 2


def without_gradient(func, q, k, v, heads, *args, **kwargs):
    """As kernels are that know no backward pass."""
    return func(q.detach(), k.detach(), v.detach(), heads, *args, **kwargs)


@pytest.mark.parametrize("model", [tiny_unet, lambda: with_override(halved)], ids=["host", "override"])
def test_both_sides_of_a_comparison_run_the_same_attention(model):
    """A reference without gradients and an edit with them show the same at the same latent, bit for bit."""
    model = model()
    with torch.inference_mode(), GradientRegion([model.model]).recording():
        reference, edit = seen(model, X.clone()), seen(model, X.clone().requires_grad_(True))
    for maps, others in ((reference.self_attention, edit.self_attention), (reference.cross_attention, edit.cross_attention)):
        assert maps and all(torch.equal(maps[layer], others[layer]) for layer in maps)


def test_an_override_of_another_node_acts_in_passes_with_gradients():
    with torch.enable_grad():
        plain = gradient_of_features(tiny_unet())
        expected = gradient_of_features(with_override(lambda func, *args, **kwargs: attention_pytorch(*args, **kwargs) / 2))
    assert relative_error(plain, expected) > 1e-2, "the override must matter"
    model = with_override(halved)
    with torch.inference_mode(), GradientRegion([model.model]).recording():
        assert relative_error(gradient_of_features(model), expected) < 1e-5


def test_an_override_without_gradient_is_refused_by_its_name():
    model = with_override(without_gradient)
    with torch.inference_mode(), GradientRegion([model.model]).recording():
        with pytest.raises(ValueError, match=r"test_gradients_patches\.without_gradient.* has no gradient"):
            gradient_of_features(model)


def conditions_of_a_score(gradients: bool) -> set:
    """What a patch can tell of the passes in which CDS asks for a score: the place of the condition, and the inference mode."""
    conditions = set()

    def look(n, options):
        conditions.update((index, torch.is_inference_mode_enabled()) for index in options["cond_or_uncond"])
        return n

    model = tiny_unet()
    model.set_model_attn1_output_patch(look)
    conds = {"source": conditioning(1), "target": conditioning(2), "negative": conditioning(3)}

    def ask(run: Run) -> None:
        with run.recording()():
            scorer(run, "target", layers_of(run.model), differentiable=True)(X.clone().requires_grad_(gradients), SIGMA[0])

    with torch.inference_mode():
        run_hosted(guider_of(model, 5.0, **conds), ask, torch.zeros_like(X), SIGMA)
    return conditions


def test_patches_are_asked_in_the_same_way_with_and_without_gradients():
    """Without gradients both conditions of CFG run in one batch, with them one after the other."""
    assert conditions_of_a_score(True) == conditions_of_a_score(False) == {(0, False), (1, False)}


class RawWeight:
    """A patch with a weight of its own, as packs bring them that load in inference mode."""

    def __init__(self):
        self.weight = torch.full((1,), 1.5)

    def __call__(self, n: torch.Tensor, options: dict) -> torch.Tensor:
        return n * n * self.weight + n


@pytest.mark.parametrize("checkpointing", [False, True])
def test_inference_tensors_of_other_packs(checkpointing):
    def patched(patch):
        model = tiny_unet()
        model.set_model_attn1_output_patch(patch)
        return model

    def gradient(model) -> torch.Tensor:
        options = differentiable_options(model.model_options)["transformer_options"]
        x = X.clone().requires_grad_(True)
        out = model.model.apply_model(x, SIGMA, c_crossattn=CONTEXT, transformer_options=options)
        return torch.autograd.grad(out.square().mean(), x)[0]

    with torch.enable_grad():
        expected = gradient(patched(RawWeight()))
    with torch.inference_mode():
        patch = RawWeight()
        model = patched(patch)
        assert patch.weight.is_inference()
        before = fingerprint(model)
        region = GradientRegion([model.model], checkpointing)
        for _ in range(2):  # the second pass knows from the first
            with region.recording():
                assert relative_error(gradient(model), expected) < 1e-5
        assert fingerprint(model) == before


class Counted:
    """A backend of torch.compile that runs graphs as they are and counts how often."""

    runs = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def test_a_compiled_model_is_hooked_as_it_is_and_stays_compiled_elsewhere():
    """The host's compile node leaves options out of its guards: a graph that was made without hooks would run without them."""
    backend, model = Counted(), tiny_unet()
    unguarded = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}
    set_torch_compile_wrapper(model, backend=backend, options=unguarded)

    def take(guider, options):
        def passed() -> int:
            before = backend.runs
            comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds["positive"]], X, SIGMA, options)
            return backend.runs - before

        plain = passed()
        with GradientRegion([guider.inner_model]).recording():
            x, runs = X.clone().requires_grad_(True), backend.runs
            layers = layers_of(guider.inner_model)
            shown = observe(guider.inner_model, guider.conds["positive"], x, SIGMA, options, layers, differentiable=True)
            gradient = torch.autograd.grad(sum(f.square().sum() for f in shown.self_attention.values()), x)[0]
        return plain, backend.runs - runs, passed(), gradient

    cond = {"positive": conditioning(1)}
    with torch.inference_mode():
        plain, hooked, again, gradient = probed(guider_of(model, **cond), take)
        *_, expected = probed(guider_of(tiny_unet(), **cond), take)
    assert (plain > 0, hooked, again) == (True, 0, plain)
    assert torch.equal(gradient, expected)
