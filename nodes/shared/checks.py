"""What several nodes refuse, and how inputs that are lists become one value."""

from collections.abc import Callable
from functools import wraps

import torch
from comfy_api.latest import io


def check_latent(samples: torch.Tensor) -> None:
    if samples.ndim != 4:
        raise ValueError(f"the latent is {tuple(samples.shape)}; it needs image latents (B, C, H, W)")
    if not torch.isfinite(samples).all():
        raise ValueError("the latent holds NaN or infinite values; check the image and the VAE that encoded it")


def same_text(conditioning: list, other: list) -> bool:
    """Whether two CONDITIONINGs hold the same text embeddings."""
    return len(conditioning) == len(other) and all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for (a, _), (b, _) in zip(conditioning, other, strict=True)
    )


def single_but(*lists: str) -> Callable[[Callable[..., io.NodeOutput]], Callable[..., io.NodeOutput]]:
    """For the `execute` of a node that takes lists: the inputs named here stay lists, of every other one its single value.

    The host hands lists to all inputs of a node that takes one.
    """

    def decorate(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
        @wraps(execute)
        def unpacked(cls: type[io.ComfyNode], **inputs: list) -> io.NodeOutput:
            for name in inputs.keys() - set(lists):
                if len(inputs[name]) != 1:
                    raise ValueError(f"{name} came as a list of {len(inputs[name])}; it needs one value")
            return execute(cls, **{name: values if name in lists else values[0] for name, values in inputs.items()})

        return unpacked

    return decorate


def item_by_item(whole: str) -> Callable[[Callable[..., io.NodeOutput]], Callable[..., io.NodeOutput]]:
    """For the `execute` of a node that takes lists and gives them: it runs item by item, as the host runs other nodes.

    Only where the input `whole` alone has several items, one run takes all of them.
    """

    def decorate(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
        @wraps(execute)
        def runs(cls: type[io.ComfyNode], **inputs: list) -> io.NodeOutput:
            others = {name: values for name, values in inputs.items() if name != whole}
            if max(map(len, others.values())) == 1:
                return execute(cls, **{whole: inputs[whole]}, **{name: value for name, (value,) in others.items()})

            def run(number: int) -> io.NodeOutput:
                items = {name: values[min(number, len(values) - 1)] for name, values in inputs.items()}
                return execute(cls, **items | {whole: [items[whole]]})

            outputs = [run(number).args for number in range(max(map(len, inputs.values())))]
            return io.NodeOutput(*(sum(lists, []) for lists in zip(*outputs, strict=True)))

        return runs

    return decorate
