"""A ComfyUI that cannot list the diffusers folders: which nodes are there all the same? (test_routes.py reads the last line.)"""

import asyncio
import json

import folder_paths
import purecc_pack

all_but_diffusers = folder_paths.get_folder_paths
folder_paths.get_folder_paths = lambda name: all_but_diffusers({"diffusers": "nowhere"}.get(name, name))
extension = asyncio.run(purecc_pack.comfy_entrypoint())
print(json.dumps([node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]))
