"""Run a script in a process that is ComfyUI as far as imports go: for parity tests that need the host's own functions.

usage: in_host.py COMFYUI BASE SCRIPT [ARGUMENT ...]      (through the fixture `run_in_host`)

In the script: `comfy`, `nodes`, `folder_paths`, ... are the host's, on the CPU, with BASE as its base directory, and
`PromptServer.instance` is there (it listens nowhere); `purecc_pack` is this pack, imported as the host imports it;
`purecc` can be imported too, but is then a second copy of `purecc_pack.purecc`: classes of the one are not the other's.
"""

import asyncio
import importlib.util
import inspect
import runpy
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def become_host(comfyui: str, base: str) -> None:
    sys.path[0] = comfyui  # was tests/host
    sys.path.append(str(PROJECT))  # last: the pack's `nodes` must not hide the host's
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = base
    args.database_url = "sqlite:///:memory:"
    importlib.import_module("utils.extra_config")  # as main.py does, before anything brings another `utils`
    make_server(importlib.import_module("server").PromptServer, args)


def make_server(server: type, args: object) -> None:
    """Newer hosts give it their manager of assets too."""
    asks = "asset_manager" in inspect.signature(server).parameters
    assets = [importlib.import_module("app.assets.manager").NoAssets(args)] if asks else []
    server(asyncio.new_event_loop(), *assets)


def import_pack() -> None:
    """As nodes.load_custom_node does: a package under a name of its own, its folder not on sys.path."""
    spec = importlib.util.spec_from_file_location(
        "purecc_pack", PROJECT / "__init__.py", submodule_search_locations=[str(PROJECT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["purecc_pack"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    become_host(sys.argv[1], sys.argv[2])
    import_pack()
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
