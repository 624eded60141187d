"""What a training node needs of the host: device, pictures in and out, progress, interruption, folders."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from aiohttp import web
from PIL import Image
from server import PromptServer
from torch import Tensor

log = logging.getLogger(__name__)
TEXT, MISTAKE = "purecc.text", "purecc.mistake"  # events to the page
_FOLDER = "purecc"  # of the host's models folder, and of its output folder
_BUNDLED = Path(__file__).parents[2] / "workflows" / "concepts"  # concepts that come with the pack, to load only
_PREVIEW = 256  # pixels, the longer side at most
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)),
}  # on Windows, no files


@contextmanager
def outside_inference() -> Iterator[None]:
    """Gradients are recorded inside. The host runs every node in inference mode, which `enable_grad` does not leave."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def as_the_host() -> Iterator[None]:
    """The host's own mode inside, for all that may move its models.

    Their weights are inference tensors: moved to another device or dtype outside this mode, they fail in the stock nodes that follow.
    """
    with torch.inference_mode():
        yield


def kept(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy on the CPU that training may keep: gradients cannot pass what was made in the host's mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().to("cpu", dtype).clone()


def training_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def training_dtype(device: torch.device | None = None, wanted: str = "auto") -> torch.dtype:
    """The dtype of the frozen weights: the wanted one, or for "auto" what the host would take on this device, bfloat16 or float32.

    Never float16 or float8, whatever the command line says: gradients need bfloat16's range.
    """
    device = device or training_device()
    if wanted != "auto":
        return getattr(torch, wanted)
    allowed = [torch.bfloat16, torch.float32]
    chosen = comfy.model_management.unet_dtype(device=device, model_params=0, supported_dtypes=allowed)
    if chosen not in allowed:  # --fp16-unet and its kind, of people with small cards
        chosen = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    return chosen


def encode_pictures(vae: comfy.sd.VAE, images: Tensor) -> Tensor:
    """Pictures [batch, height, width, 3] in [0, 1] -> latents [batch, channels, height / 8, width / 8], float32, on the CPU.

    Sides that the VAE's downscale does not divide are cropped by the host, about the centre. What overflows in half
    precision is done once more in float32. Raises ValueError where the latents are not finite even so.
    """
    latents = _finite(vae, lambda: vae.encode(images[..., :3]))
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The VAE gave latents that are not finite, in float32 too: its file is damaged, or is not SD3's. Load another file of SD3's VAE."
        )
    return latents


def decode_latents(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    """The VAE's own latents -> pictures [batch, height, width, 3] in [0, 1], on the CPU; never black by an overflow.

    Raises ValueError where the latents are not finite, or the pictures in float32 too.
    """
    if not torch.isfinite(latents).all():
        raise ValueError("The model's picture is not finite: training has diverged. Lower the learning rates.")
    pictures = _finite(vae, lambda: vae.decode(latents.detach()))
    if not torch.isfinite(pictures).all():
        raise ValueError("The VAE gave pictures that are not finite, in float32 too. Load another file of SD3's VAE.")
    return pictures


def _finite(vae: comfy.sd.VAE, work: Callable[[], Tensor]) -> Tensor:
    """What a call of the VAE gives, float32, on the CPU; where values overflow, once more with the VAE in float32."""

    dtype = vae.vae_dtype
    with as_the_host():
        made = kept(work())
        if torch.isfinite(made).all() or dtype == torch.float32:
            return made
        log.warning("PureCC: the VAE overflows in %s; once more in float32.", str(dtype).removeprefix("torch."))
        try:
            vae.vae_dtype = torch.float32
            vae.first_stage_model.to(torch.float32)
            return kept(work())
        finally:
            vae.vae_dtype = dtype
            vae.first_stage_model.to(dtype)


class Progress:
    """A node's progress bar, the text under it and its preview picture."""

    def __init__(self, node_id: str, total: int):
        self.node_id, self.total = node_id, total
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def step(self, done: int, text: str = "", preview: Image.Image | None = None) -> None:
        """`done` of `total` steps are done."""
        picture = ("JPEG", preview.convert("RGB"), _PREVIEW) if preview is not None else None
        self._bar.update_absolute(done, self.total, picture)
        if text:
            _show(text, self.node_id)


def tell_in_node(text: str, level: int = logging.INFO) -> None:
    """Logs a text and shows it in the node of this pack that is running, where there is one."""
    log.log(level, text)
    if (node_id := _running()) is not None:
        _show(text, node_id)


def tell_below_node(text: str) -> None:
    """Logs a text and has the page show it below the node that is running, any pack's, as it shows progress: two lines at most."""
    log.info(text)
    if (node_id := _running()) is not None:
        server = PromptServer.instance
        server.send_progress_text(text, node_id, server.client_id)


def warn_of_mistake(text: str) -> None:
    """Logs what is wired wrongly though it runs, and has the page show it over the canvas."""
    log.warning(text)
    send_event(MISTAKE, {"text": text})


def _running() -> str | None:
    return getattr(PromptServer.instance, "last_node_id", None)


def _show(text: str, node_id: str) -> None:
    send_event(TEXT, {"node": node_id, "text": text})


def send_event(name: str, data: dict[str, Any]) -> None:
    """An event to the page that queued what is running, with the prompt's id."""
    server = PromptServer.instance
    server.send_sync(name, {**data, "prompt_id": getattr(server, "last_prompt_id", None)}, server.client_id)


def serve_json(route: str, answer: Callable[[str], dict[str, Any]]) -> None:
    """Adds GET `route`, which has a part {name}: `answer(name)` as JSON; a LookupError becomes 404 with its sentence."""

    @PromptServer.instance.routes.get(route)
    async def handler(request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        try:
            body = await loop.run_in_executor(None, answer, request.match_info["name"])
        except LookupError as error:
            return web.json_response({"error": str(error.args[0])}, status=404)
        return web.json_response(body)


def check_interrupted() -> None:
    """Raises the host's own exception where the user pressed cancel; let it pass through."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def free_for_training() -> None:
    """Every model of the host leaves the device."""
    with as_the_host():
        comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def watch_peak(device: torch.device) -> int:
    """From here on `peak` tells the most that was allocated. Bytes that are now; 0 where no allocator counts them."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int | None:
    """Bytes, by the allocator, since `watch_peak`; None where no allocator counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def runs_folder() -> Path:
    """Where runs are kept: in the output folder, so that the page can show their pictures after a reload."""
    return _made(Path(folder_paths.get_output_directory()) / _FOLDER / "runs")


def input_folder() -> Path:
    """The host's folder for people's own pictures."""
    return Path(folder_paths.get_input_directory())


def concepts_folder() -> Path:
    """models/purecc, where concept files are saved; made where it is not there yet."""
    return _made(_register())


def _register() -> Path:
    """models/purecc, made known to the host, .safetensors only. Makes no folder: lists are asked for while the pack loads.

    The pack's own concepts are registered beside it, last: a file of the user's that has the same name is taken.
    """
    folder = Path(folder_paths.models_dir) / _FOLDER
    # add_model_folder_path would leave the set of extensions empty, which means every file
    paths, _ = folder_paths.folder_names_and_paths.get(_FOLDER, ([], set()))
    others = [path for path in paths if path not in (str(folder), str(_BUNDLED))]
    paths = [str(folder), *others, str(_BUNDLED)]
    folder_paths.folder_names_and_paths[_FOLDER] = (paths, {".safetensors"})
    return folder


def concept_files() -> list[str]:
    """Names of the concept files, relative to their folders, for a combo."""
    _register()
    return files_of(_FOLDER)


def concept_file(name: str) -> Path | None:
    """The file of a name from `concept_files`; None where there is none."""
    _register()
    return file_of(_FOLDER, name)


def concept_path(name: str) -> Path:
    """The same. Raises ValueError where there is none: the host does not check combos."""
    if path := concept_file(name):
        return path
    raise ValueError(f'There is no concept "{name}" in {concepts_folder()}. Refresh the list (R) and choose another.')


def content_of(*files: Path | None) -> str:
    """Changes with the bytes of any of the files, and where one comes or goes; not where one is written anew as it was."""
    return repr([None if file is None or not file.is_file() else _digest(file, *_stamp(file)) for file in files])


def _stamp(file: Path) -> tuple[int, int]:
    seen = file.stat()
    return seen.st_mtime_ns, seen.st_size


@lru_cache(maxsize=64)
def _digest(file: Path, *_: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def not_a_name(folder: Path, name: str | None) -> str | None:
    """Why no .safetensors file of this name can be in the folder; None where one can, and of a wire's name, which is not known yet."""
    try:
        if name is not None:
            path_inside(folder, name, ".safetensors")
    except ValueError as error:
        return str(error)
    return None


def content_under(folder: Path, name: str | None) -> str:
    """`content_of` the .safetensors file of a name; of one that cannot be, or is not known yet, nothing."""
    return "" if name is None or not_a_name(folder, name) else content_of(path_inside(folder, name, ".safetensors"))


def files_of(kind: str) -> list[str]:
    """Names of the files in the host's folders of a kind, with / after sub-folders on Windows too: workflows are shared."""
    return [name.replace("\\", "/") for name in folder_paths.get_filename_list(kind)]


def file_of(kind: str, name: str) -> Path | None:
    """The file of a name from `files_of`, or of one that a workflow of Windows has with \\; None where there is none."""
    name = name.replace("\\", "/")
    return Path(folder_paths.get_full_path_or_raise(kind, name)) if name in files_of(kind) else None


def path_inside(folder: Path, name: str, suffix: str = "") -> Path:
    """`folder`/`name` with the suffix; sub-folders are allowed. Raises ValueError for a name that leads out of the folder."""
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    rooted = name.strip().startswith(("/", "\\")) or PureWindowsPath(name.strip()).drive
    strange = any(c in part for part in parts for c in '<>:"|?*\0') or any(len(part) > 200 for part in parts)
    if not parts or rooted or ".." in parts or strange or any(p.partition(".")[0].lower() in _DEVICES for p in parts):
        raise ValueError(
            f'"{name}" is not a name for a file here: use letters, digits, spaces, - and _, / for a sub-folder, and no name that '
            "Windows keeps for devices (con, aux, nul, ...)."
        )
    path = folder.joinpath(*parts)
    if suffix and path.suffix.lower() != suffix:
        path = path.with_name(path.name + suffix)
    if folder.resolve() not in path.resolve().parents:  # a link inside the folder may lead out of it
        raise ValueError(f'"{name}" leads out of {folder}. Use a name without links.')
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
