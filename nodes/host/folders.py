"""Folders and files: where runs, concepts and people's pictures are, and which names may lead there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths
from torch import Tensor

from ...purecc.files import save_beside_others as _save_beside_others

_FOLDER = "purecc"  # of the host's models folder, and of its output folder
_BUNDLED = Path(__file__).parents[2] / "workflows" / "concepts"  # concepts that come with the pack, to load only
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)),
}  # on Windows, no files


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
    strange = any(c in '<>:"|?*' or ord(c) < 32 for part in parts for c in part)
    strange = strange or any(len(part.encode("utf-8", "replace")) > 200 for part in parts)
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


def save_beside_others(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Writes a file; one of something else that has its name gets another, and a line for the node says so."""
    kept = _save_beside_others(path, tensors, metadata)
    return [] if kept is None else [f"{path.name} was of something else; it is now {kept.name}"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
