import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from comfy_api.latest import io, ui

from ..bridge.loops.word_maps import attention_maps
from ..bridge.model.attention import hooked_layers
from ..bridge.model.conditioning import prompt_tokens, spelled
from ..bridge.model.facts import HookedLayers, all_cross_attention, pixels_per_position
from ..zerocon_core.drawing import cell_size, labelled_grid
from ..zerocon_core.maps.words import Token, colours, heat_of_words, normalize, positions_of, resize
from .shared.checks import check_latent
from .shared.schema import search_aliases


class AttentionMapPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAttentionMapPreview",
            display_name="Attention Map Preview",
            category="ZeroCon",
            **search_aliases("cross attention map", "DAAM", "word heat map"),
            description="Shows where in an image the model sees each word of a prompt: the cross-attention maps that PatchNCE "
            "Guidance holds to the source.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x or SDXL. With Attention Hooked U-Net before it, its cross-attention layers are read; "
                    "without, all.",
                ),
                io.Latent.Input("image_latent", tooltip="The encoded image."),
                io.Conditioning.Input("conditioning", tooltip="The prompt to look at."),
                io.String.Input(
                    "prompt", default="",
                    tooltip="The words of the conditioning. Needed, with the CLIP, to know which token is which word.",
                ),
                io.String.Input(
                    "words", default="",
                    tooltip='Words or phrases of the prompt to show, such as "cat, wooden door". Without words and tokens: all.',
                ),
                io.String.Input(
                    "tokens", default="",
                    tooltip='Numbers of tokens to show, such as "2, 5". 0 is the start of the prompt. Works without a CLIP.',
                ),
                io.Float.Input(
                    "strength", default=0.5, min=0.01, max=1.0, step=0.05, round=0.001,
                    tooltip="How much noise the image gets before the model looks at it, as the denoise of a sampler.",
                ),
                io.Float.Input(
                    "opacity", default=0.6, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="How strongly the colours cover the image. No effect without an image.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="For the noise."),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP that encoded the prompt."),
                io.Image.Input("image", optional=True, tooltip="The image to lay the maps over. Without it, the maps alone."),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="picture",
                    tooltip="One picture for each image: the map of every word with its share of all attention.",
                ),
                io.Mask.Output(
                    "maps", display_name="maps",
                    tooltip="The maps themselves from 0 to 1, in the size of the image: all words of the first image, then of "
                    "the next.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, image_latent, conditioning, prompt, words, tokens, strength, opacity, seed, clip=None, image=None
    ) -> io.NodeOutput:
        samples = image_latent["samples"]
        layers = hooked_layers(model) or all_cross_attention(model.get_model_object("diffusion_model"))
        check(model, samples, layers, image)
        said = prompt_tokens(clip, prompt) if clip is not None and prompt.strip() else []
        chosen = [*find_words(words, said, clip), *name_tokens(parse_numbers(tokens), said)]
        try:
            maps = attention_maps(model, samples, conditioning, layers, strength, seed)
        except ValueError as error:
            raise ValueError(f"AttentionMapPreview: {error}") from error
        count = maps.shape[1]
        chosen = chosen or name_tokens([token.position for token in said] or range(count), said)
        check_positions(chosen, said, count)

        heat, shares = heat_of_words(maps, [word.positions for word in chosen])
        heat = normalize(heat)
        size = [side * pixels_per_position(model) for side in samples.shape[-2:]] if image is None else image.shape[1:3]
        cells = lay_over(image, resize(heat, cell_size(*size, len(chosen))), opacity)
        labels = [[f"{word.name}  {share:.1%}" for word, share in zip(chosen, row, strict=True)] for row in shares.tolist()]
        picture = torch.stack([labelled_grid(*row) for row in zip(cells, labels, strict=True)])
        return io.NodeOutput(picture, resize(heat, size).flatten(0, 1), ui=ui.PreviewImage(picture))


class Word(NamedTuple):
    """What one map is of: its name, and the positions of its tokens in the conditioning."""

    name: str
    positions: list[int]


def lay_over(image: torch.Tensor | None, heat: torch.Tensor, opacity: float) -> torch.Tensor:
    """Heat (B, N, H, W) as colours over an image of each sample, or alone: (B, N, H, W, 3)."""
    if image is None:
        return colours(heat)
    under = resize(image[..., :3].float().movedim(-1, 1), heat.shape[-2:]).movedim(1, -1).unsqueeze(1).to(heat)
    return torch.lerp(under, colours(heat), opacity)


def check(model, samples: torch.Tensor, layers: HookedLayers, image: torch.Tensor | None) -> None:
    check_latent("AttentionMapPreview", samples)
    if not layers.cross_attention:
        raise ValueError(
            f"AttentionMapPreview: no cross-attention layer of {type(model.model).__name__} is read; choose layers in Attention "
            "Hooked U-Net, or use an SD1.x, SD2.x or SDXL model"
        )
    if image is None:
        return
    (count, height, width), (rows, columns) = image.shape[:3], samples.shape[-2:]
    if count not in (1, len(samples)) or not 0.9 < (width * rows) / (height * columns) < 1.1:
        raise ValueError(
            f"AttentionMapPreview: the image is {count} of {width}x{height}, the latent {len(samples)} of {columns}x{rows}; "
            "connect the image that the latent was encoded from"
        )


def find_words(words: str, said: list[Token], clip) -> list[Word]:
    """The words and phrases of a comma-separated list in the tokens of the prompt."""
    phrases = list(filter(None, (" ".join(phrase.split()) for phrase in re.split(r"[,\n]", words))))
    if phrases and not said:
        raise ValueError(
            f'AttentionMapPreview: "{", ".join(phrases)}" cannot be found in the conditioning, which holds no words; '
            "connect the CLIP and write the prompt, or give numbers in tokens"
        )
    found = [Word(phrase, positions_of([token.text for token in prompt_tokens(clip, phrase)], said)) for phrase in phrases]
    missing = [f'"{word.name}"' for word in found if not word.positions]
    if missing:
        raise ValueError(
            f"AttentionMapPreview: the prompt does not contain {', '.join(missing)}; choose from its words: "
            f"{', '.join(dict.fromkeys(spelled(token.text for token in said).split()))}"
        )
    return found


def parse_numbers(tokens: str) -> list[int]:
    numbers = tokens.replace(",", " ").split()
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f'AttentionMapPreview: tokens is "{tokens}"; it needs whole numbers from 0, such as "2, 5"')
    return [int(number) for number in numbers]


def name_tokens(positions: Iterable[int], said: list[Token]) -> list[Word]:
    """Each token by its number, and by its text if that is known."""
    texts = {token.position: spelled([token.text]) for token in said}
    return [Word(f"{position} {texts.get(position, '')}".strip(), [position]) for position in positions]


def check_positions(chosen: list[Word], said: list[Token], count: int) -> None:
    last = max([*(position for word in chosen for position in word.positions), *(token.position for token in said)])
    if last >= count:
        raise ValueError(
            f"AttentionMapPreview: there is no token {last}, the conditioning has 0 to {count - 1}; give smaller numbers in "
            "tokens, and as prompt the text of the conditioning"
        )
