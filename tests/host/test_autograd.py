"""Gradients through the host's models against plain autograd on ordinary float32 weights."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from tiny import FAMILIES, WIDTH, fingerprint, randn, relative_error, tiny_unet
from zerocon_pack.bridge.model.attention import observe
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers

X = randn(1, 4, 16, 12, seed=1)
CONTEXT = randn(1, 7, WIDTH, seed=2)
VECTOR = randn(1, WIDTH + 6 * 256, seed=3)  # pooled text and sizes, for SDXL
SIGMA = torch.tensor([1.5])


def denoise(model, x, **options):
    vector = {"y": VECTOR} if model.adm_channels else {}
    return model.apply_model(x, SIGMA, c_crossattn=CONTEXT, transformer_options=options, **vector)


def plain_gradient(patcher) -> torch.Tensor:
    """By autograd alone; right only for resident float32 weights made outside inference mode."""
    with torch.enable_grad():
        x = X.clone().requires_grad_(True)
        return torch.autograd.grad(denoise(patcher.model, x).square().mean(), x)[0]


def region_gradient(patcher, in_place: bool = False, checkpointing: bool = False, **options) -> torch.Tensor:
    """As a node would take it: inside the host's inference mode, through the autograd region."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        with GradientRegion([patcher.model.diffusion_model], checkpointing, in_place).recording():
            x = X.clone().requires_grad_(True)
            return torch.autograd.grad(denoise(patcher.model, x, **options).square().mean(), x)[0]


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return plain_gradient(tiny_unet())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_inference_tensors(family, checkpointing):
    with torch.inference_mode():
        loaded = tiny_unet(family=family)
    assert next(loaded.model.parameters()).is_inference()
    gradient = region_gradient(loaded, checkpointing=checkpointing)
    assert relative_error(gradient, plain_gradient(tiny_unet(family=family))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_another_precision(dtype):
    with torch.inference_mode():
        loaded = tiny_unet(dtype)
    rounded = tiny_unet()
    with torch.no_grad():
        for parameter in rounded.model.diffusion_model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    assert relative_error(region_gradient(loaded), plain_gradient(rounded)) < 1e-5


def test_lora_patch(truth):
    key = "diffusion_model.output_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    with torch.inference_mode():
        loaded = tiny_unet().clone()
    delta = randn(*loaded.model.state_dict()[key].shape, seed=5) * 0.3
    assert loaded.add_patches({key: ("diff", (delta,))}, strength_patch=0.5) == [key]
    merged = tiny_unet()
    with torch.no_grad():
        merged.model.get_parameter(key).add_(0.5 * delta)
    expected = plain_gradient(merged)
    assert relative_error(truth, expected) > 1e-3, "the patch must matter"
    assert relative_error(region_gradient(loaded), expected) < 1e-5
    loaded.unpatch_model()


def stream_weights(monkeypatch) -> None:
    """Hand out every weight in one buffer that the next operation overwrites, as the host does when memory is short."""
    cast, buffer = comfy.ops.cast_bias_weight, torch.empty(200_000)

    def cast_into_buffer(module, *args, **kwargs):
        weight, *rest = cast(module, *args, **kwargs)
        streamed = buffer[: weight.numel()].view(weight.shape)
        streamed.data.copy_(weight)
        return streamed, *rest

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_into_buffer)


def test_weights_streamed_through_a_reused_buffer(monkeypatch):
    streamed = tiny_unet(torch.float16)  # its operations cast, and so ask for their weights
    expected = region_gradient(streamed)
    stream_weights(monkeypatch)
    assert relative_error(region_gradient(streamed), expected) < 1e-5
    with torch.enable_grad():
        x = X.clone().requires_grad_(True)
        out = denoise(streamed.model, x)
        try:
            plain = torch.autograd.grad(out.square().mean(), x)[0]
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            assert relative_error(plain, expected) > 0.1, "the simulation must break plain autograd"


def test_a_layer_whose_forward_is_replaced(truth):
    """Adapters that wrap a layer's forward are differentiated through what they compute."""
    patcher = tiny_unet()
    layer = patcher.model.diffusion_model.output_blocks[1][1].transformer_blocks[0].attn1.to_q
    original, delta = layer.forward, randn(*layer.weight.shape, seed=5) * 0.1
    layer.forward = lambda x: original(x) + x @ delta.T
    expected = plain_gradient(patcher)
    replaced = layer.forward
    assert relative_error(truth, expected) > 1e-3
    assert relative_error(region_gradient(patcher), expected) < 1e-5
    assert layer.forward is replaced


class PackedLinear(torch.nn.Module):
    """A layer as other packs bring them for quantised files: a Linear by name, its weight in a form of its own."""

    __class__ = torch.nn.Linear

    def __init__(self, layer):
        super().__init__()
        self.weight = torch.nn.Parameter(layer.weight.detach().view(torch.int32).clone(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.view(torch.float32), self.bias)


def test_layers_of_other_packs(truth):
    with torch.inference_mode():
        patcher = tiny_unet()
        attention = patcher.model.diffusion_model.output_blocks[1][1].transformer_blocks[0].attn1
        attention.to_q = PackedLinear(attention.to_q)
    assert relative_error(region_gradient(patcher), truth) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_control_that_is_added_in_place(truth, checkpointing):
    def with_control(patcher, take):
        model = patcher.model
        apply_model = model.apply_model
        coarse = {part: [randn(1, 64, 8, 6, seed=seed)] for seed, part in ((8, "middle"), (9, "output"))}
        control = coarse | {"input": [randn(1, 32, 16, 12, seed=7)]}
        model.apply_model = lambda *args, **kwargs: apply_model(*args, **kwargs, control={k: v[:] for k, v in control.items()})
        try:
            return take(patcher)
        finally:
            del model.apply_model

    def plain(patcher):
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            return plain_gradient(patcher)

    expected = with_control(tiny_unet(), plain)
    assert relative_error(truth, expected) > 1e-3
    with torch.inference_mode():
        loaded = tiny_unet()
    assert relative_error(with_control(loaded, lambda p: region_gradient(p, True, checkpointing)), expected) < 1e-5


def test_gradient_of_captured_attention():
    """The path that guidance takes: gradients of what the hooks read, not of the output."""

    def loss(observation):
        maps = [*observation.cross_attention.values(), *observation.self_attention.values()]
        return sum((m * torch.linspace(-1, 1, m.numel()).view(m.shape)).sum() for m in maps)

    def gradient(patcher):
        layers = frozenset(transformer_layers(patcher.model.diffusion_model))
        x = X.clone().requires_grad_(True)
        cond = [{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(CONTEXT)}, "uuid": "a"}]
        patcher.pre_run()
        seen = observe(patcher.model, cond, x, SIGMA, patcher.model_options, HookedLayers(layers, layers))
        patcher.cleanup()
        return torch.autograd.grad(loss(seen), x)[0]

    with torch.enable_grad():
        expected = gradient(tiny_unet())
    with torch.inference_mode():
        loaded = tiny_unet()
        with GradientRegion([loaded.model.diffusion_model]).recording():
            assert relative_error(gradient(loaded), expected) < 1e-5


@pytest.mark.parametrize("failure", [None, RuntimeError, comfy.model_management.InterruptProcessingException])
def test_everything_is_as_before(failure):
    with torch.inference_mode():
        patcher = tiny_unet()
        before = fingerprint(patcher)
        try:
            with GradientRegion([patcher.model.diffusion_model], writes_in_place=True).recording():
                x = X.clone().requires_grad_(True)
                out = denoise(patcher.model, x)
                if failure is not None:
                    raise failure()
                torch.autograd.grad(out.sum(), x)
        except BaseException as error:
            assert failure is not None and isinstance(error, failure)
        assert fingerprint(patcher) == before
