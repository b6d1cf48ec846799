"""How a node says no, or warns: one sentence that begins with the name it has in the page."""

import logging
from collections.abc import Callable
from functools import wraps

from comfy_api.latest import io

from ...bridge.status import say
from .checks import check_written
from .links import check_links

log = logging.getLogger(__name__)


def refusing(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """For a node's `execute`, below @classmethod: puts the node's display name before what is refused inside.

    So nothing that a node calls has to know which node that is. What is refused is a ValueError; files that cannot be read are
    OSErrors and packages that are missing ImportErrors.
    """

    @wraps(execute)
    def execute_or_refuse(cls: type[io.ComfyNode], *args, **kwargs) -> io.NodeOutput:
        try:
            check_links(cls.define_schema(), kwargs)
            check_written(kwargs)
            return execute(cls, *args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            said = " ".join(str(error).split())  # what is quoted in it may have lines
            raise ValueError(f"{cls.define_schema().display_name}: {said}") from error

    return execute_or_refuse


def warn(cls: type[io.ComfyNode], text: str) -> None:
    """Shows `text` on the node that is being executed, and in the log behind its name. It needs `unique_id` among its hidden."""
    log.warning("%s: %s", cls.define_schema().display_name, text)
    say(cls.hidden.unique_id, text)
