"""A throw-away pack: what ours would register, had Attention Hooked U-Net ever had another node id."""

from comfy_api.latest import ComfyAPI, ComfyExtension, io


class RenamedExtension(ComfyExtension):
    async def on_load(self):
        widgets = ["self_attention", "cross_attention", "max_side"]
        await ComfyAPI().node_replacement.register(
            io.NodeReplace(
                new_node_id="ZeroConAttentionHookedUNet",
                old_node_id="ZeroConFormerName",
                old_widget_ids=widgets,
                input_mapping=[{"new_id": name, "old_id": name} for name in ("model", *widgets)],
                output_mapping=[{"new_idx": 0, "old_idx": 0}],
            )
        )

    async def get_node_list(self):
        return []


async def comfy_entrypoint():
    return RenamedExtension()
