"""Set up everything on a fresh machine, then run the demo, the tests or a server.

    python dev.py demo            translate the bundled picture on a real ComfyUI server, and measure the result
    python dev.py test [...]      ruff and all test tiers; further arguments go to pytest
    python dev.py serve [...]     leave a server with the pack running; further arguments go to ComfyUI
    python dev.py piebench [...]  run and measure the methods on PIE-Bench; --help lists the arguments

Needs Python 3.10 or newer and, where no ComfyUI is found, git. Environment variables, all optional:
ZEROCON_VENV (default .venv), COMFYUI_PATH, COMFYUI_OLD_PATH (a 0.3.64 to test against as well).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.comfy_server import PromptError, ServerError, comfy_server, comfyui_version, find_comfyui

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("ZEROCON_VENV", ROOT / ".venv")).expanduser().absolute()
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOCK = ROOT / "tools" / "requirements-dev.lock"
BASE = ROOT / ".zerocon"

COMFYUI_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
COMFYUI_COMMIT = "783545f689a0af730065994b46b382ae24844c99"  # 0.33.0, what the lock file was made for


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: object, **options) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def ensure_comfyui() -> Path:
    if found := find_comfyui():
        return found
    target = ROOT / ".cache" / f"ComfyUI-{COMFYUI_COMMIT[:8]}"
    if not (target / ".complete").exists():
        say(f"No ComfyUI around this folder or in ~/comfy/ComfyUI: fetching it into {target} (or set COMFYUI_PATH)")
        run("git", "init", "--quiet", target)
        run("git", "-C", target, "fetch", "--depth", "1", COMFYUI_REPOSITORY, COMFYUI_COMMIT)
        run("git", "-C", target, "checkout", "--quiet", "--force", COMFYUI_COMMIT)
        (target / ".complete").touch()
    return target


def ensure_environment(comfyui: Path) -> None:
    """A virtual environment with the locked packages, and on top of them what this ComfyUI asks for."""
    host_requirements = comfyui / "requirements.txt"
    wanted = hashlib.sha256(LOCK.read_bytes() + host_requirements.read_bytes()).hexdigest()
    stamp = VENV / "zerocon-stamp"
    if VENV_PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    if not VENV_PYTHON.exists():
        say(f"Making a virtual environment in {VENV}")
        run(sys.executable, "-m", "venv", VENV)
    pip = (VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    say("Installing the locked packages (PyTorch is among them: some GB on Linux, once)")
    run(*pip, "-r", LOCK)
    say(f"Adding what the ComfyUI {comfyui_version(comfyui)} in {comfyui} needs beyond them")
    run(*pip, "-r", host_requirements)
    stamp.write_text(wanted)


def test(comfyui: Path, arguments: list[str]) -> int:
    old = Path(os.environ.get("COMFYUI_OLD_PATH", Path.home() / "comfy" / "ComfyUI-0.3.64"))
    pytest = [sys.executable, "-m", "pytest", "-q", *arguments]
    # A process each: the host tier imports ComfyUI, whose `nodes` and `utils` are not this repository's.
    tiers = [
        ("ruff", [sys.executable, "-m", "ruff", "check", "."], comfyui),
        ("core", [*pytest, "tests/core"], comfyui),
        (f"host {comfyui_version(comfyui)}", [*pytest, "tests/host"], comfyui),
    ]
    if old.is_dir():
        tiers.append((f"host {comfyui_version(old)}", [*pytest, "tests/host"], old))
    else:
        say("No ComfyUI 0.3.64 ($COMFYUI_OLD_PATH, ~/comfy/ComfyUI-0.3.64): its tier is left out")
    tiers.append((f"server {comfyui_version(comfyui)}", [*pytest, "tests/server"], comfyui))

    results = []
    for name, command, host in tiers:
        say(name)
        began = time.monotonic()
        code = subprocess.call(command, cwd=ROOT, env=os.environ | {"COMFYUI_PATH": str(host)})
        nothing_selected = code == 5 and arguments  # pytest's code for "no tests ran"
        results.append((name, code == 0 or nothing_selected, time.monotonic() - began))
    say("Summary")
    for name, passed, seconds in results:
        print(f"{'passed' if passed else 'FAILED'}  {name:14} {seconds:6.0f} s")
    return 0 if all(passed for _, passed, _ in results) else 1


def serve(comfyui: Path, arguments: list[str]) -> int:
    say(f"Starting ComfyUI {comfyui_version(comfyui)} with its models, input and output folders in {BASE}")
    with comfy_server(comfyui, BASE, arguments) as client:
        say(f"Open {client.url} (log: {client.log_path}). Ctrl-C stops it.")
        return client.process.wait()


def demo(comfyui: Path) -> int:
    from tools.demo import run_demo  # needs the environment

    say(f"Starting ComfyUI {comfyui_version(comfyui)}")
    with comfy_server(comfyui, BASE) as client:
        return run_demo(client, ROOT / "output")


def piebench(comfyui: Path, arguments: list[str]) -> int:
    from tools.piebench import model_paths, parse, run  # needs the environment

    options = parse(arguments)
    say(f"Starting ComfyUI {comfyui_version(comfyui)}")
    with comfy_server(comfyui, BASE, model_paths(comfyui, options, BASE)) as client:
        return run(client, options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("demo", "test", "serve", "piebench"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command == "demo" and options.arguments:
        parser.error(f"demo takes no further arguments, got: {' '.join(options.arguments)}")

    comfyui = ensure_comfyui()
    ensure_environment(comfyui)
    if Path(sys.prefix).resolve() != VENV.resolve():  # from here on in the environment just made
        command = [str(VENV_PYTHON), str(Path(__file__).resolve()), *sys.argv[1:]]
        if os.name == "nt":
            return subprocess.call(command)
        os.execv(command[0], command)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then too
    if options.command == "demo":
        return demo(comfyui)
    return {"test": test, "serve": serve, "piebench": piebench}[options.command](comfyui, options.arguments)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  the Python at hand may be any
        sys.exit("Python 3.10 or newer is needed.")
    try:
        sys.exit(main())
    except (ServerError, PromptError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
