"""PureCC for ComfyUI: teach SD3-type models a concept from a few pictures, and leave the rest as it was."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .nodes.chart import serve_runs

WEB_DIRECTORY = "./js"


class PureCCExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> PureCCExtension:
    serve_runs()
    return PureCCExtension()
