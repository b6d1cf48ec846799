from comfy_api.latest import io

from ..bridge.model.conditioning import encode_captions
from ..zerocon_core.language.text import lines
from .shared.checks import check_encoded
from .shared.refusals import refusing
from .shared.schema import search_aliases


class CaptionEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConCaptionEncode",
            display_name="Caption Encode",
            category="ZeroCon",
            **search_aliases("CLIP text encode", "batch prompts", "one prompt per image"),
            description="Encodes captions, a line each, so that every image of a batch has its own. A single caption becomes "
            "what CLIP Text Encode makes of it.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    tooltip="A caption for all images, or a line for each, as Auto Caption gives them.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For any node that takes a CONDITIONING."
                ),
            ],
        )

    @classmethod
    @refusing
    def execute(cls, clip, captions) -> io.NodeOutput:
        conditioning = encode_captions(clip, lines(captions) or [""])
        check_encoded(conditioning)
        return io.NodeOutput(conditioning)
