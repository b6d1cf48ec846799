from comfy_api.latest import io

from ..bridge.files.networks import captioner_names
from ..bridge.networks.captioner import caption
from .shared.checks import check_images
from .shared.refusals import refusing
from .shared.schema import search_aliases


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAutoCaption",
            display_name="Auto Caption",
            category="ZeroCon",
            **search_aliases("blip", "image to text", "describe image"),
            description="Describes images in words, one caption an image.",
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Combo.Input(
                    "captioner", options=captioner_names(),
                    tooltip="toy world: bundled, for the toy world's images only. Salesforce/...: downloaded on the first run "
                    "(base 1 GB, large 2 GB). Others: folders in models/captioners.",
                ),
                io.String.Input(
                    "prefix", default="", tooltip='Words the caption shall begin with, such as "a photo of". May be empty.'
                ),
            ],
            outputs=[
                io.String.Output(
                    "caption", display_name="caption", is_output_list=True, tooltip="One caption an image of the batch."
                )
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, image, captioner, prefix) -> io.NodeOutput:
        check_images("the image", image)
        captions = caption(image, captioner, prefix)
        return io.NodeOutput(captions, ui={"text": captions})
