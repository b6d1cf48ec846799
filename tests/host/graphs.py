"""Graphs in API format that several tests start from."""


def cds_graph(**changes) -> dict:
    """A graph of the node alone. `changes` are inputs by node, such as cds={"steps": 3}."""
    nodes = {
        "cds": ("ZeroConCDSOptimize", dict(
            model=["model", 0], image_latent=["latent", 0], source=["source", 0], target=["target", 0], negative=["negative", 0],
            cfg=3.0, steps=3, step_size=0.3, step_rule="fixed", w_dds=1.0, w_cut=3.0, temperature=0.07, patches=256,
            patch_sizes="1, 2", contrast="cds", min_timestep=0.05, max_timestep=0.948, timestep_order="random", ids_steps=0,
            checkpointing=False, seed=0)),
        "result": ("TestCapture", dict(value=["cds", 0])),
        "loss": ("TestCapture", dict(value=["cds", 1])),
    }  # fmt: skip
    for name in ("model", "latent", "source", "target", "negative"):
        nodes[name] = "TestValue", {"key": name}
    return changed(nodes, changes)


def changed(nodes: dict[str, tuple[str, dict]], changes: dict[str, dict]) -> dict:
    """In API format: `nodes` by name with their class and inputs, after `changes` of inputs; a new node gives its class_type."""
    nodes = dict(nodes)
    for name, inputs in changes.items():
        kind, before = nodes.get(name) or ("", {})
        inputs = before | inputs
        nodes[name] = inputs.pop("class_type", kind), inputs
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
