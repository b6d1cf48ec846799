"""What the autograd region keeps, for how long, and where it looks for weights."""

import gc
import weakref

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from test_autograd import X, denoise, plain_gradient
from tiny import fingerprint, randn, relative_error, tiny_unet
from zerocon_pack.bridge.model.attention import Capture, capture_options
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers


def saved_tensors(region: GradientRegion, patcher) -> list[torch.Tensor]:
    saved = []
    with region.recording(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        denoise(patcher.model, X.clone().requires_grad_(True))
    return saved


def looks_like_a_weight(patcher):
    shapes = {tuple(sorted(p.shape)) for p in patcher.model.parameters() if p.ndim > 1}
    return lambda tensor: tuple(sorted(tensor.shape)) in shapes


def test_weights_that_the_host_casts_are_not_saved():
    with torch.inference_mode():
        patcher = tiny_unet(torch.float16)
        saved = saved_tensors(GradientRegion([patcher.model]), patcher)
    assert saved and not any(map(looks_like_a_weight(patcher), saved))


@pytest.mark.parametrize("writes_in_place", [False, True])
def test_weights_that_stay_are_saved_without_a_copy(writes_in_place):
    with torch.inference_mode():
        patcher = tiny_unet()
        saved = saved_tensors(GradientRegion([patcher.model], writes_in_place=writes_in_place), patcher)
    weights = {p.data_ptr() for p in patcher.model.parameters()}
    alike = list(filter(looks_like_a_weight(patcher), saved))
    assert alike and all(tensor.data_ptr() in weights for tensor in alike)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("runs", [0, 1, 2], ids=["in the model", "before the backward pass", "in the backward pass"])
def test_a_checkpointed_pass_that_is_given_up_is_freed(runs, failure):
    """`runs` are those that the last transformer block begins: it runs once more in the backward pass."""
    with torch.inference_mode():
        patcher = tiny_unet()
    layers = frozenset(transformer_layers(patcher.model.diffusion_model))
    started, inputs = [], []

    def fail(*_):
        started.append(None)
        if len(started) > runs:
            raise failure()

    def features(x: torch.Tensor):
        options = capture_options(patcher.model_options, HookedLayers(layers), capture := Capture(), differentiable=True)
        denoise(patcher.model, x, uuids=[0], **options["transformer_options"])
        return capture.observation().self_attention.values()

    def give_up():
        with GradientRegion([patcher.model], checkpointing=True).recording():
            x = X.clone().requires_grad_(True)
            inputs.append(weakref.ref(x))
            loss = sum(feature.square().sum() for feature in features(x))
            fail()
            torch.autograd.grad(loss, x)

    block = [module for module in patcher.model.modules() if isinstance(module, BasicTransformerBlock)][-1]
    before = live_tensors()
    handle = block.norm1.register_forward_pre_hook(fail)
    with torch.inference_mode(), pytest.raises(failure):
        give_up()
    handle.remove()
    assert live_tensors() == before
    assert inputs[0]() is None


def test_weights_that_the_host_replaces_between_passes():
    """Loading, moving and patching give a module another parameter; the region made before must not bring the old one back."""
    with torch.inference_mode():
        patcher = tiny_unet()
        region = GradientRegion([patcher.model])
        with region.recording():
            pass
        layer = patcher.model.diffusion_model.output_blocks[1][1].transformer_blocks[0].attn1.to_q
        layer.weight = torch.nn.Parameter(layer.weight + randn(*layer.weight.shape, seed=5) * 0.3, requires_grad=False)
        before = fingerprint(patcher)
        with region.recording():
            x = X.clone().requires_grad_(True)
            gradient = torch.autograd.grad(denoise(patcher.model, x).square().mean(), x)[0]
        assert fingerprint(patcher) == before
    changed = tiny_unet()
    changed.model.load_state_dict({name: value.clone() for name, value in patcher.model.state_dict().items()})
    expected = plain_gradient(changed)
    assert relative_error(plain_gradient(tiny_unet()), expected) > 1e-3
    assert relative_error(gradient, expected) < 1e-5
