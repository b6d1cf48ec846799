"""Heat maps of words in the host's executor, against attention computed from the modules' own queries and keys in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from test_nodes import WordClip
from tiny import FAMILIES, conditioning, randn, relative_error, tiny_unet
from zerocon_pack.bridge import toyworld
from zerocon_pack.bridge.loops.word_maps import attention_maps
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.conditioning import prompt_tokens
from zerocon_pack.bridge.model.facts import HookedLayers, all_cross_attention, transformer_layers
from zerocon_pack.zerocon_core.language.tokens import places_of, spelled
from zerocon_pack.zerocon_core.toyworld import scene

LATENT = randn(2, 4, 16, 12)
PROMPT = "a red cat on the very old red wooden door"  # two windows of WordClip


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    return tiny_unet()


@pytest.fixture
def preview(run_graph):
    def run(model, latent=LATENT, cond=None, settings=None, **links):
        inputs = dict(
            model=["model", 0], image_latent=["latent", 0], conditioning=["conditioning", 0], prompt="", words="", tokens="",
            strength=0.5, opacity=0.6, seed=0,
        )  # fmt: skip
        values = {"model": model, "latent": {"samples": latent}, "conditioning": cond or conditioning(1)} | links
        graph = {
            "node": {
                "class_type": "ZeroConAttentionMapPreview",
                "inputs": inputs | {k: [k, 0] for k in links} | (settings or {}),
            },
            "picture": {"class_type": "TestCapture", "inputs": {"value": ["node", 0]}},
            "maps": {"class_type": "TestCapture", "inputs": {"value": ["node", 1]}},
        }
        graph |= {name: {"class_type": "TestValue", "inputs": {"key": name}} for name in values}
        return run_graph(graph, values)

    return run


def of_words(preview, words="", tokens="", prompt=PROMPT, clip=None, **settings):
    clip = clip or WordClip()
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    return preview(tiny_unet(), cond=cond, settings=settings | dict(prompt=prompt, words=words, tokens=tokens), clip=clip)


def noised(model, latent, strength, seed):
    """What the network sees of a latent, its noise level, in float64."""
    sampling = model.get_model_object("model_sampling")
    sigma = torch.tensor(sampling.percent_to_sigma(1 - strength))
    noise = torch.randn(1, *latent.shape[1:], generator=torch.Generator().manual_seed(seed)).double()
    z = latent.double() * model.model.latent_format.scale_factor
    return (z + sigma * noise) / (1 + sigma**2).sqrt(), sampling.timestep(sigma).double().view(1)


def float64_maps(family, x, timestep, cond):
    """softmax(q k^T / sqrt(d)) of every attn2 module, mean over heads, resized and averaged over modules: (tokens, H, W)."""
    unet = tiny_unet(family=family).model.diffusion_model.double()
    unet.dtype = torch.float64
    size, maps = x.shape[-2:], []

    def read(module, args, kwargs):
        q = module.to_q(args[0]).unflatten(-1, (module.heads, -1))[0]
        k = module.to_k(kwargs["context"]).unflatten(-1, (module.heads, -1))[0]
        heads = [(q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1])).softmax(-1) for h in range(module.heads)]
        side = math.sqrt(len(q) / math.prod(size))
        map = (sum(heads) / len(heads)).T.reshape(1, -1, round(size[0] * side), round(size[1] * side))
        maps.append(F.interpolate(map, size, mode="bilinear", align_corners=False)[0])

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(read, with_kwargs=True)
    unet(x, timestep, context=cond[0][0].double())
    return sum(maps) / len(maps)


@pytest.mark.parametrize("family", ["SD1.x", "SD2.x"])
def test_the_node_shows_the_modules_own_attention(preview, family):
    model = tiny_unet(family=family)
    run = preview(model, settings=dict(tokens="40, 3", strength=0.4, seed=5))
    assert run.success, run.error
    x, timestep = noised(model, LATENT, 0.4, 5)
    maps = run.captured["maps"]
    assert maps.shape == (4, 128, 96)  # both tokens of the first image, then of the second
    for i in range(2):
        truth = float64_maps(family, x[i : i + 1], timestep, conditioning(1))
        for map, token in zip(maps[2 * i : 2 * i + 2], (40, 3), strict=True):
            heat = (truth[token] - truth[token].min()) / (truth[token].max() - truth[token].min())
            assert relative_error(map, F.interpolate(heat[None, None], (128, 96), mode="bilinear")[0, 0]) < 1e-3


def test_shares_and_all_tokens_without_a_clip(preview, model):
    """77 maps; the picture says how much attention each gets, here compared through the bridge with float64."""
    run = preview(model)
    assert run.success, run.error
    assert run.captured["maps"].shape[0] == 2 * 77
    assert run.captured["picture"].shape[0] == 2 and len(run.outputs["node"]["images"]) == 2
    maps = attention_maps(model, LATENT, conditioning(1), all_cross_attention(model.model.diffusion_model), 0.5, 0)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 16, 12))
    x, timestep = noised(model, LATENT, 0.5, 0)
    assert relative_error(maps[0], float64_maps("SD1.x", x[:1], timestep, conditioning(1))) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_the_projections_of_its_own_pass(family):
    """What to_q and to_k gave in the pass itself, where the families' conditions and depths differ."""
    model, seen = tiny_unet(family=family), []
    attn2 = [module for name, module in model.model.diffusion_model.named_modules() if name.endswith("attn2")]
    for module in attn2:
        for projection in (module.to_q, module.to_k):
            projection.register_forward_hook(lambda module, args, out: seen.append(out.double()))
    maps = attention_maps(model, LATENT[:1], conditioning(1), all_cross_attention(model.model.diffusion_model), 0.5, 0)
    truth = 0.0
    for q, k in zip(seen[::2], seen[1::2], strict=True):
        heads = [
            (a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) for a, b in zip(q[0].chunk(2, -1), k[0].chunk(2, -1), strict=True)
        ]
        side = math.sqrt(len(heads[0]) / (16 * 12))
        map = (sum(heads) / 2).T.reshape(1, 77, round(16 * side), round(12 * side))
        truth = truth + F.interpolate(map, (16, 12), mode="bilinear")[0] / len(attn2)
    assert len(seen) == 2 * len(attn2) and relative_error(maps[0], truth) < 1e-5


def test_words_are_their_tokens(preview):
    """WordClip has 8 tokens a window, a start at 0 and 8, so "wooden door" is 11 and 12, and "red" 2 and 10."""
    words, tokens = of_words(preview, words="cat, door"), of_words(preview, tokens="3 12")
    assert words.success, words.error
    assert words.captured["maps"].equal(tokens.captured["maps"])
    # A phrase and a word that stands twice are the mean of their maps before these are scaled.
    model, clip = tiny_unet(), WordClip()
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    raw = attention_maps(model, LATENT, cond, all_cross_attention(model.model.diffusion_model), 0.5, 0)
    shown = of_words(preview, words="wooden door, red").captured["maps"]
    for map, pair in zip(shown[:2], ((11, 12), (2, 10)), strict=True):
        mean = (raw[0, pair[0]] + raw[0, pair[1]]) / 2
        heat = (mean - mean.min()) / (mean.max() - mean.min())
        torch.testing.assert_close(map, F.interpolate(heat[None, None], (128, 96), mode="bilinear")[0, 0])


def test_all_words_of_the_prompt_and_no_padding(preview):
    assert of_words(preview).captured["maps"].shape[0] == 2 * len(PROMPT.split())


def test_an_area_is_looked_at_alone_and_lies_in_its_place(preview, model):
    [[text, _]] = conditioning(1)
    maps = attention_maps(
        model, LATENT, [[text, {"area": (8, 6, 4, 2), "strength": 1.0}]], all_cross_attention(model.model.diffusion_model), 0.5, 0
    )
    x, timestep = noised(model, LATENT, 0.5, 0)
    truth = float64_maps("SD1.x", x[:1, :, 4:12, 2:8], timestep, conditioning(1))
    assert relative_error(maps[0, :, 4:12, 2:8], truth) < 1e-4
    maps[..., 4:12, 2:8] = 0
    assert not maps.any()


def test_hooks_choose_the_layers_and_change_nothing_else(preview, model):
    layers = transformer_layers(model.model.diffusion_model)
    encoder = frozenset(layer for layer in layers if layer.block == "input")
    options = repr(model.model_options)
    plain = preview(model, settings={"tokens": "5"}).captured["maps"]
    assert plain.equal(
        preview(hook_layers(model, HookedLayers(frozenset(), frozenset(layers))), settings={"tokens": "5"}).captured["maps"]
    )
    some = hook_layers(model, HookedLayers(frozenset(), encoder))
    assert not plain.equal(preview(some, settings={"tokens": "5"}).captured["maps"])
    assert repr(model.model_options) == options and plain.equal(preview(model, settings={"tokens": "5"}).captured["maps"])


def test_a_batch_is_its_samples_and_a_seed_its_bits(model):
    layers = all_cross_attention(model.model.diffusion_model)
    maps = lambda latent, seed: attention_maps(model, latent, conditioning(1), layers, 0.5, seed)
    both = maps(LATENT, 1)
    for i in range(2):
        assert relative_error(both[i], maps(LATENT[i : i + 1], 1)[0]) < 1e-5
    assert both.equal(maps(LATENT, 1)) and not both.equal(maps(LATENT, 2))


def test_one_pass_without_gradients(preview, model):
    passes = []
    count = lambda executor, x, *args, **kwargs: (passes.append((len(x), x.requires_grad)), executor(x, *args, **kwargs))[1]
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    assert preview(model).success
    assert passes == [(2, False)]


def test_opacity_lays_the_colours_over_the_image(preview, model):
    image = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(0))
    shown = lambda opacity: preview(model, settings={"tokens": "5", "opacity": opacity}, image=image).captured["picture"]
    first, full, half = shown(0.0), shown(1.0), shown(0.5)
    inside = (slice(None), slice(6, 6 + 512), slice(6, 6 + 384))  # the only cell: 4 times as large as the image
    assert relative_error(first[inside][0, 2::4, 2::4], image[0]) < 0.15 < relative_error(full[inside][0, 2::4, 2::4], image[0])
    torch.testing.assert_close(half[inside], (first[inside] + full[inside]) / 2, atol=0.006, rtol=0)
    assert full.equal(preview(model, settings={"tokens": "5", "opacity": 0.0}).captured["picture"])  # without an image
    image = torch.cat([image, torch.ones(1, 128, 96, 1)], -1)
    assert shown(0.5).equal(half)  # a fourth channel is no colour


def conditioned(start, end):
    return [[conditioning(1)[0][0], {"start_percent": start, "end_percent": end}]]


REFUSALS = {
    "a word that is not there": (
        dict(words="cat, blue dog, mat"),
        ['"blue dog", "mat"', "a, red, cat, on, the, very, old, wooden"],
    ),
    "words without a prompt": (dict(words="cat", prompt=" "), ['"cat"', "CLIP", "tokens"]),
    "no numbers": (dict(tokens="1, x"), ['"1, x"', "whole numbers"]),
    "too large a number": (dict(tokens="16"), ["no token 16", "0 to 15"]),
    "another prompt": (dict(prompt=f"{PROMPT} and a {PROMPT}"), ["0 to 15", "the text of the conditioning"]),
}


@pytest.mark.parametrize("settings, said", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_of_words(preview, settings, said):
    run = of_words(preview, **settings)
    assert not run.success and run.error.startswith("Attention Map Preview: ")
    assert all(part in run.error for part in said), run.error
    assert "\n" not in run.error.strip() and not run.error.strip().endswith(".")


HOOKS = {
    "no layers": lambda layers: HookedLayers(frozenset(), frozenset()),
    "too small": lambda layers: HookedLayers(frozenset(), frozenset(layers), max_side=2),
}


@pytest.mark.parametrize("hooks, said", [("no layers", "no cross-attention layer"), ("too small", "max_side is 2")])
def test_refusals_of_hooks(preview, model, hooks, said):
    run = preview(hook_layers(model, HOOKS[hooks](transformer_layers(model.model.diffusion_model))))
    assert not run.success and run.error.startswith("Attention Map Preview: ") and said in run.error
    assert "Attention Hooked U-Net" in run.error


@pytest.mark.parametrize(
    "cond, said", [(conditioning(1) + conditioning(2), "2 prompts"), (conditioned(0.0, 0.2), "0 prompts")], ids=["two", "none"]
)
def test_a_token_has_to_be_one_word(preview, model, cond, said):
    run = preview(model, cond=cond)
    assert not run.success and said in run.error and run.error.startswith("Attention Map Preview: ")
    assert preview(model, cond=conditioned(0.2, 0.8)).success


@pytest.mark.parametrize("shape", [(3, 128, 96, 3), (1, 96, 128, 3)], ids=["count", "proportions"])
def test_an_image_of_another_latent(preview, model, shape):
    run = preview(model, image=torch.zeros(shape))
    assert not run.success and "12x16" in run.error and f"{shape[2]}x{shape[1]}" in run.error


def test_a_model_that_is_no_unet(preview, model):
    broken = model.clone()
    broken.get_model_object = lambda name: torch.nn.Linear(1, 1) if name == "diffusion_model" else model.get_model_object(name)
    run = preview(broken)
    assert not run.success and "SD1.x" in run.error


@pytest.fixture(scope="module")
def world():
    with torch.inference_mode():
        return toyworld.load_toy_world()


def test_tokens_of_the_real_tokenizer(world):
    """CLIP's own: weights are no tokens, rare words are several, and 75 fit into a window between start and end."""
    _, clip, _ = world
    tokens = prompt_tokens(clip, "A (red:1.3) hexagonal circle")
    assert [(token.position, token.text) for token in tokens] == [
        (1, "a</w>"), (2, "red</w>"), (3, "hex"), (4, "ag"), (5, "onal</w>"), (6, "circle</w>")
    ]  # fmt: skip
    long = "a red cat " * 30
    positions = [token.position for token in prompt_tokens(clip, long)]
    assert positions == [*range(1, 76), *range(78, 93)]
    assert clip.encode_from_tokens_scheduled(clip.tokenize(long))[0][0].shape[1] == 2 * 77


def test_the_toy_model_sees_the_shape_where_it_is(world, preview):
    """The map of the shape's word is hotter inside the renderer's own mask of the object than outside."""
    model, clip, vae = world
    for truth in scene.held_out_scenes(4):
        image, text = torch.from_numpy(scene.render(truth))[None], scene.caption(truth)
        run = preview(
            model, vae.encode(image), clip.encode_from_tokens_scheduled(clip.tokenize(text)),
            dict(prompt=text, words=f"{truth.shape}, {truth.colour} {truth.shape}"), clip=clip, image=image,
        )  # fmt: skip
        assert run.success, run.error
        heat, inside = run.captured["maps"][0], torch.from_numpy(scene.object_mask(truth)) > 0.5
        assert heat[inside].mean() - heat[~inside].mean() > 0.3


@pytest.mark.parametrize(
    "prompt, word, others",
    [
        ("一只红色的猫在垫子上", "猫", "狗"),
        ("赤い猫がマットの上にいる", "マット", "犬"),
        ("빨간 고양이가 매트 위에 있다", "고양이", "개"),
        ("ein süßes Kätzchen auf der Matte", "Kätzchen", "Katze"),
        ("a red cat on a mat, asleep", "cat on a mat", "mat cat"),
    ],
)
def test_words_of_any_language_are_found_in_the_real_tokenizer_s_pieces(prompt, word, others):
    tokens = prompt_tokens(toyworld.load_clip(), prompt)
    pieces = lambda text: [token.text for token in prompt_tokens(toyworld.load_clip(), text)]
    found = list(places_of(spelled(pieces(word)), tokens))
    assert found and "".join(text_of(tokens, found).split()) == "".join(word.lower().split())
    assert not list(places_of(spelled(pieces(others)), tokens))


def text_of(tokens: list, places: list[int]) -> str:
    return spelled(token.text for token in tokens if token.position in places)
