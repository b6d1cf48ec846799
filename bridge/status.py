"""Short texts on a node in the page."""

import logging

from server import PromptServer

log = logging.getLogger(__name__)


def say(node_id: str, text: str) -> None:
    """Show `text` on the node that is being executed."""
    PromptServer.instance.send_progress_text(text, node_id)


def announce(node_id: str, text: str) -> None:
    """Show `text` on the node and in the log, where it stays."""
    log.info("ZeroCon: %s", text)
    say(node_id, text)
