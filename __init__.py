"""PureCC for ComfyUI: teach SD3-type models a concept from a few pictures, and leave the rest as it was."""

import logging

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .nodes.chart import serve_runs

WEB_DIRECTORY = "./js"


class PureCCExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for node in NODES if _loads(node)]


def _loads(node: type[io.ComfyNode]) -> bool:
    """Whether the host can have the node: one whose inputs cannot be listed would take all after it along."""
    try:
        node.GET_SCHEMA()
    except Exception:
        logging.exception("PureCC: the node %s is not there, because:", node.__name__)
        return False
    return True


async def comfy_entrypoint() -> PureCCExtension:
    serve_runs()
    return PureCCExtension()
