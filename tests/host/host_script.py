"""What `run_in_host` promises, seen from inside (test_server.py reads the last line)."""

import json
import sys
from pathlib import Path

import comfy.model_management
import folder_paths
import purecc_pack
from server import PromptServer

import nodes
import purecc

project = Path(purecc.__file__).parents[1]
print(
    json.dumps(
        {
            "argument": sys.argv[1],
            "device": str(comfy.model_management.get_torch_device()),
            "nodes_is_the_hosts": "KSampler" in nodes.NODE_CLASS_MAPPINGS,
            "pack": callable(purecc_pack.comfy_entrypoint),
            "purecc": purecc.__version__,
            "base_is_ours": project not in Path(folder_paths.get_output_directory()).parents
            and PromptServer.instance is not None,
        }
    )
)
