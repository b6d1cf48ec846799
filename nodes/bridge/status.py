"""Short texts on a node in the page."""

from server import PromptServer


def say(node_id: str, text: str) -> None:
    """Show `text` on the node that is being executed."""
    PromptServer.instance.send_progress_text(text, node_id)
