from dataclasses import replace

import torch
from comfy_api.latest import io

from ..bridge.loops.splats import background, pictures_of
from ..bridge.splats import Cameras, framing, orbit, splat_with, splats_from
from ..zerocon_core.splats.views import lift
from .shared import types
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.splats import check_views, region_of, seen_splats


class SplatViews(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConSplatViews",
            display_name="Splat Views",
            category="ZeroCon/3D",
            **search_aliases("multi-view", "turntable", "gaussian splat"),
            description="Pictures of a Gaussian splat from all around, for any node that edits images. Views To Splat brings the "
            "edited pictures back into the splat.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Splat.Input("splat", tooltip="One splat."),
                io.Int.Input("views", default=8, min=1, max=64, tooltip="How many pictures, evenly around the splat."),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="Side of the square pictures in pixels: that which the model that edits them knows best.",
                ),
                io.Float.Input(
                    "pitch", default=15.0, min=-89.0, max=89.0, step=1.0, round=0.01,
                    tooltip="How far above the splat the cameras stand, in degrees. Not read with a first camera.",
                ),
                io.Float.Input(
                    "distance", default=0.0, min=0.0, max=1000.0, step=0.1, round=0.001,
                    tooltip="From the cameras to the middle of the splat. 0 frames it. Not read with a first camera.",
                ),
                io.Float.Input(
                    "fov", default=35.0, min=1.0, max=120.0, step=1.0, round=0.01,
                    tooltip="Field of view in degrees. Not read with a first camera.",
                ),
                io.Load3DCamera.Input(
                    "camera_info", optional=True,
                    tooltip="The first camera, from Load 3D or Create Camera Info. The others are it, turned about its target.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The pictures before grey, as one batch."),
                io.Mask.Output("coverage", display_name="coverage", tooltip="How much of each pixel the splat covers."),
                types.Cameras.Output("cameras", display_name="cameras", tooltip="For Views To Splat and CDS Optimize 3D."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, splat, views, size, pitch, distance, fov, camera_info=None) -> io.NodeOutput:
        first = framing(splats_from(splat), pitch, distance, fov) if camera_info is None else camera_info
        cameras = Cameras(orbit(first, views), size)
        splats, seen = seen_splats(cls, splat, cameras)
        return io.NodeOutput(pictures_of(splats, seen), torch.stack([view.covered.cpu() for view in seen]), cameras)


class ViewsToSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConViewsToSplat",
            display_name="Views To Splat",
            category="ZeroCon/3D",
            **search_aliases("lift edits", "multi-view edit", "gaussian splat"),
            description="Brings edited pictures of a splat back into it: each splat takes the mean of what the edit changed "
            "where it is seen. Colours change, the shape stays.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Splat.Input("splat", tooltip="The splat that the pictures were made of."),
                types.Cameras.Input("cameras", tooltip="Of Splat Views."),
                io.Image.Input("edited_images", tooltip="All images of Splat Views after an edit, in their order."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05, round=0.001,
                    tooltip="How much of the change the splat takes. 0 is the splat as it was.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="What may change, one mask for each picture. Splats that the masks mean by more than half take the "
                    "edit; all others keep their bits.",
                ),
            ],
            outputs=[
                io.Splat.Output("edited_splat", display_name="edited_splat", tooltip="For Render Splat and Save."),
                io.Image.Output("renders", display_name="renders", tooltip="The edited splat, seen by the cameras."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, splat, cameras, edited_images, strength, mask=None) -> io.NodeOutput:
        edited_images = check_views("edited_images", edited_images, cameras)
        splats, views = seen_splats(cls, splat, cameras)
        inside = None if mask is None else region_of(mask, views, cameras)
        if mask is not None and inside is None:
            warn(cls, "the masks are 0 everywhere, so nothing was edited")
            return io.NodeOutput(splat, pictures_of(splats, views))
        with torch.inference_mode(False), torch.no_grad():
            colors = lift(views, splats.colors, edited_images.to(splats.colors), background(splats), strength)
            if inside is not None:
                colors = torch.where(inside[:, None], colors, splats.colors)
        edited = replace(splats, colors=colors)
        return io.NodeOutput(splat_with(splat, splats, edited), pictures_of(edited, views))
