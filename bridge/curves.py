"""Curves for the host's own node that plots them."""

from collections.abc import Sequence

from comfy_execution.graph_utils import ExecutionBlocker


def loss_curve(losses: Sequence[float]) -> dict[str, list[float]] | ExecutionBlocker:
    """A LOSS_MAP. Plot Loss Graph divides by its height, so where that is 0 what stands behind is left out of the run."""
    return {"loss": list(losses)} if min(losses) < max(losses) else ExecutionBlocker(None)
