"""The workflow as it is run: with values set, without what nobody asked for, over several pictures at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .mapping import PICTURE_LOADERS, Graph, Mapped, Place, fitting, title
from .table import TableError

SAVERS = ("SaveImage", "PreviewImage")
TELLERS = ("PreviewAny", "ShowText|pysssss")
TEXTS = (*TELLERS, "ZeroConAutoCaption")

SAMPLE_BY_SAMPLE = {
    "LoadImage", "ImageScale", "ImageScaleBy", "ImageStitch", "VAEEncode", "VAEDecode", "CheckpointLoaderSimple", "UNETLoader",
    "CLIPLoader", "DualCLIPLoader", "VAELoader", "LoraLoader", "LoraLoaderModelOnly", "CLIPTextEncode", "StringReplace",
    "ZeroConToyWorld", "ZeroConTabletop", "ZeroConEditDirection", "ZeroConDDIMInvert", "ZeroConAttentionHookedUNet",
    "ZeroConPatchNCEGuidance", "ZeroConCDSOptimize", "ZeroConEditMask", "ZeroConEditMetrics", "MaskToImage", "BasicScheduler",
    "KSamplerSelect", "DisableNoise", "SamplerCustomAdvanced", "CFGGuider", "BasicGuider", "SaveImage", "PreviewImage",
    "PreviewAny",
}  # fmt: skip
"""Nodes that do to each picture of a batch what they do to it alone. KSampler is not among them: its noise is the batch's."""


@dataclass(frozen=True)
class Workflow:
    """A workflow that waits for rows. `kept` are the nodes whose images are results, by the folder that they go to."""

    graph: Graph
    mapped: Mapped
    kept: Mapping[str, str]
    metrics: str | None = None
    """The node that shows the metrics as JSON."""

    @property
    def picture(self) -> Place:
        """Where pictures go in. Raises TableError when there is none, or several."""
        places = [place for place in self.mapped if place.field is None or self.loads(place)]
        if len(places) != 1:
            raise TableError(f"{len(places)} places of the workflow take a picture; say which with --set NODE.image=picture")
        return places[0]

    @property
    def columns(self) -> list[str]:
        """What a row asks for beside its picture."""
        return sorted({column for place, column in self.mapped.items() if place != self.picture})

    def loads(self, place: Place) -> bool:
        return place.field == "image" and self.graph[place.node]["class_type"] in PICTURE_LOADERS

    def filled(self, values: Mapping[str, Any], uploaded: Sequence[str], name: str) -> Graph:
        """The graph for rows of these values whose pictures are `uploaded` under these names; images are saved under `name`."""
        graph = copy.deepcopy(self.graph)
        for place, column in self.mapped.items():
            if place != self.picture:
                inputs = graph[place.node]["inputs"]
                inputs[place.field] = fitting(values[column], inputs[place.field], f"{place} ({title(graph[place.node])})")
        load(graph, self.picture.node, uploaded)
        for folder, node in self.kept.items():
            # A name of its own also keeps the server from answering with a file that it saved before.
            graph[node]["inputs"]["filename_prefix"] = f"zerocon/{folder}/{name}"
            graph[node]["class_type"] = "SaveImage"
        return graph


def load(graph: Graph, node: str, uploaded: Sequence[str]) -> None:
    """Puts Load Image where `node` is, one a picture, with their batch for all that took its image."""
    meta = {"title": "Load Image"}
    graph[node] = {"class_type": "LoadImage", "inputs": {"image": uploaded[0]}, "_meta": meta}
    batch = node
    for number, name in enumerate(uploaded[1:], 2):
        graph[f"{node}_{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": meta}
        both = {"image1": [batch, 0], "image2": [f"{node}_{number}", 0]}
        batch = f"{node}_batch_{number}"
        graph[batch] = {"class_type": "ImageBatch", "inputs": both, "_meta": {"title": "Batch Images"}}
    if batch != node:
        for other, field, link in links(graph):
            if link == [node, 0] and not other.startswith(f"{node}_"):
                graph[other]["inputs"][field] = [batch, 0]


def links(graph: Graph) -> Iterator[tuple[str, str, list]]:
    """(node, input, [node, output]) of every connection."""
    for node, content in graph.items():
        for field, value in content["inputs"].items():
            if isinstance(value, list) and len(value) == 2 and value[0] in graph:
                yield node, field, value


def upstream(graph: Graph, ends: Sequence[str]) -> set[str]:
    """The nodes that `ends` need, and themselves."""
    found: set[str] = set()
    waiting = list(ends)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += [link[0] for other, _, link in links(graph) if other == node]
    return found


def outputs(graph: Graph, wanted: Sequence[str]) -> dict[str, str]:
    """The nodes whose images are kept, by the last part of their file name's prefix: all that save, or those `wanted`.

    Wanted are such names, or node ids where nothing is saved. Raises TableError.
    """
    saving = {node: content for node, content in graph.items() if content["class_type"] in SAVERS}
    names = {node: str(content["inputs"].get("filename_prefix", node)).rsplit("/", 1)[-1] for node, content in saving.items()}
    saved = {name if [*names.values()].count(name) == 1 else f"{name}_{node}": node for node, name in names.items()}
    chosen = wanted or [name for name, node in saved.items() if saving[node]["class_type"] == "SaveImage"]
    if unknown := [name for name in chosen if name not in saved]:
        raise TableError(f"the workflow keeps no {', '.join(unknown)}; it has {', '.join(saved)}")
    if not chosen:
        raise TableError("the workflow saves no image; add a Save Image, or name a Preview Image with --keep NODE")
    return {name: saved[name] for name in chosen}


def prune(graph: Graph, ends: Sequence[str]) -> Graph:
    """Without what nobody asked for: previews and comparisons cost time, and a reconstruction costs as many passes as an edit."""
    needed = upstream(graph, ends)
    tellers = [node for node, content in graph.items() if content["class_type"] in TELLERS]
    needed |= {node for node in tellers if upstream(graph, [node]) <= needed | {node}}
    return {node: content for node, content in graph.items() if node in needed}


def measured(graph: Graph, result: str, networks: Mapping[str, str]) -> tuple[Graph, str]:
    """With Edit Metrics between what is encoded and what `result` saves; and the node that shows it. Raises TableError."""
    encoders = [node for node in upstream(graph, [result]) if graph[node]["class_type"] == "VAEEncode"]
    if len(encoders) != 1:
        raise TableError(f"--metrics compares with what is encoded, and {len(encoders)} VAE Encode lead to the result")
    inputs = {
        "source": graph[encoders[0]]["inputs"]["pixels"], "edited": graph[result]["inputs"]["images"], "source_text": "",
        "target_text": "", "structure": "off", "lpips": "off", "clip": "off", "pixels": "0 to 1", **networks,
    }  # fmt: skip
    added = {
        "metrics": {"class_type": "ZeroConEditMetrics", "inputs": inputs, "_meta": {"title": "Edit Metrics"}},
        "metrics_shown": {"class_type": "PreviewAny", "inputs": {"source": ["metrics", 1]}, "_meta": {"title": "Metrics"}},
    }
    return graph | added, "metrics_shown"


def check_batches(workflow: Workflow) -> None:
    """Raises TableError for a graph in which a picture of a batch would not come out as it does alone."""
    picture = workflow.picture.node
    for node, content in workflow.graph.items():
        if node != picture and content["class_type"] not in SAMPLE_BY_SAMPLE:
            raise TableError(
                f"--batch: it is not known of {title(content)} (node {node}) that it treats the pictures of a batch as it does "
                "one alone; run it without --batch"
            )
    if others := [node for node, _, link in links(workflow.graph) if link[0] == picture and link[1] != 0]:
        raise TableError(f"--batch: node {others[0]} takes another output of {picture} than its image; run it without --batch")
