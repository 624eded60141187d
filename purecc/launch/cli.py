"""The command line of `run.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from purecc.launch.install import best_device, set_up
from purecc.launch.layout import COMFYUI_VARIABLE, LaunchError, choose_layout
from purecc.launch.pictures import PARTS, choose_parts
from purecc.launch.process import exit_on_signals
from purecc.launch.tests import TIERS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors that a user can act on are printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):  # node titles may hold letters that an old console cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    exit_on_signals()
    try:
        return run(options, rest)
    except (LaunchError, OSError) as error:  # a full disk, a folder that may not be written
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, rest: list[str]) -> int:
    layout = choose_layout(options.comfyui, options.python)
    if options.command == "test":
        tiers, pytest_arguments = split_tiers(rest)
        set_up(layout, tests=True, browser="browser" in tiers)
        from purecc.launch.tests import run_tests

        return run_tests(layout, tiers, pytest_arguments)

    parts = choose_parts(options.parts) if options.command == "pictures" else []
    if options.command == "demo":
        out = options.out or layout.project / "demo_output"
        out.mkdir(parents=True, exist_ok=True)  # now, rather than after the training
    set_up(layout, browser="03" in parts)
    device = best_device(layout) if options.device == "auto" else options.device
    if options.command == "demo":
        from purecc.launch.demo import run_demo

        run_demo(layout, device, out)
    elif options.command == "pictures":
        from purecc.launch.pictures import run_pictures

        run_pictures(layout, device, parts)
    else:
        from purecc.launch.serve import run_serve

        run_serve(layout, device, options.port)
    return 0


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add(
        "--comfyui",
        metavar="DIR",
        help=f"a ComfyUI that you have (or the variable {COMFYUI_VARIABLE}); default: a copy",
    )
    add(
        "--python",
        metavar="FILE",
        help="a Python that has ComfyUI's requirements; default: your ComfyUI's own, or ours",
    )
    host = argparse.ArgumentParser(add_help=False)
    host.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto: the GPU if torch sees one"
    )

    parser = argparse.ArgumentParser(
        prog="run.py", description="PureCC on a real ComfyUI. All that it needs is set up once, in .local/."
    )
    add_command = parser.add_subparsers(dest="command", required=True).add_parser
    demo = add_command(
        "demo",
        parents=[common, host],
        allow_abbrev=False,
        help="train on the bundled pictures; original and customised pictures side by side",
    )
    demo.add_argument(
        "--out",
        metavar="DIR",
        type=_folder,
        help="where pictures, concept file and report.md go; default: demo_output/",
    )
    serve = add_command(
        "serve", parents=[common, host], allow_abbrev=False, help="ComfyUI with its page, the pack and its workflows"
    )
    serve.add_argument("--port", type=_port, default=8188, help="default: 8188")
    pictures = add_command(
        "pictures",
        parents=[common, host],
        allow_abbrev=False,
        help="for developers: make thumbnails, the README's pictures and the bundled concepts anew",
    )
    pictures.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    # The tiers are not declared: argparse hands on what it does not know in order, so `-k name` stays together.
    add_command(
        "test",
        parents=[common],
        allow_abbrev=False,
        usage="run.py test [unit] [host] [browser] [--comfyui DIR] [--python FILE] [pytest's arguments]",
        help="the tests, all or some; the rest goes to pytest",
    )
    return parser


def _folder(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return folder


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is no port; one is a number from 1 to 65535")
    return int(text)


def split_tiers(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Tier names, and the rest, which is pytest's, as in `-k browser`. No tier named means all."""
    before = ["", *arguments]
    named = [a in TIERS and b not in ("-k", "-m") for b, a in zip(before, arguments, strict=False)]
    tiers = [a for a, is_tier in zip(arguments, named, strict=True) if is_tier]
    return tiers or list(TIERS), [a for a, is_tier in zip(arguments, named, strict=True) if not is_tier]
