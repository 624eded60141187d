"""PureCC for ComfyUI: the host reads this file and asks comfy_entrypoint() for the nodes."""

from comfy_api.latest import ComfyExtension


class PureCCExtension(ComfyExtension):
    async def get_node_list(self):
        return []


async def comfy_entrypoint():
    return PureCCExtension()
