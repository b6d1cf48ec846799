"""Set up everything on a fresh machine, then run the demo, the tests or a server.

    python dev.py demo            translate the bundled picture on a real ComfyUI server, and measure the result
    python dev.py test [...]      ruff, mypy and all test tiers; further arguments go to pytest
    python dev.py serve [...]     leave a server with the pack running; further arguments go to ComfyUI
    python dev.py translate [...] run a workflow over a table or a folder of pictures, on one server or many; --help
    python dev.py piebench [...]  run and measure the methods on PIE-Bench; --help lists the arguments

Needs Python 3.10 or newer and, where no ComfyUI is found, git. Environment variables, all optional:
ZEROCON_VENV (default .venv), COMFYUI_PATH, COMFYUI_OLD_PATH (a 0.3.64 to test against as well), CHROMIUM (to test the page in).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tools.comfy_client import PromptError, ServerError
from tools.comfy_server import comfy_server, comfyui_version, find_comfyui

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("ZEROCON_VENV", ROOT / ".venv")).expanduser().absolute()
STAMP = "zerocon-stamp"  # in a finished environment: what it was made of
LOCK = ROOT / "tools" / "requirements-dev.lock"
BASE = ROOT / ".zerocon"
CACHE = ROOT / ".cache"

COMFYUI_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
COMFYUI_COMMIT = "783545f689a0af730065994b46b382ae24844c99"  # 0.33.0, what the lock file was made for
COMFY_CLI = "comfy-cli==1.23.0"  # packs and validates as the registry does


def program(environment: Path, name: str) -> Path:
    return environment / (f"Scripts/{name}.exe" if os.name == "nt" else f"bin/{name}")


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: object, **options) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def ensure_comfyui() -> Path:
    if found := find_comfyui():
        return found
    target = CACHE / f"ComfyUI-{COMFYUI_COMMIT[:8]}"
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
    if is_made(VENV, wanted):
        return
    python = program(VENV, "python")
    if not python.exists():
        say(f"Making a virtual environment in {VENV}")
        run(sys.executable, "-m", "venv", VENV)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    say("Installing the locked packages (PyTorch is among them: some GB on Linux, once)")
    run(*pip, "-r", LOCK)
    say(f"Adding what the ComfyUI {comfyui_version(comfyui)} in {comfyui} needs beyond them")
    run(*pip, "-r", host_requirements)
    (VENV / STAMP).write_text(wanted)


def is_made(environment: Path, wanted: str) -> bool:
    stamp = environment / STAMP
    return program(environment, "python").exists() and stamp.exists() and stamp.read_text() == wanted


def ensure_old_environment(old: Path) -> Path:
    """The Python of an environment with what an older ComfyUI pins; all else is read from the first environment."""
    folder = VENV.with_name(f"{VENV.name}-{comfyui_version(old)}")
    python = program(folder, "python")
    wanted = hashlib.sha256(LOCK.read_bytes() + (old / "requirements.txt").read_bytes()).hexdigest()
    if not is_made(folder, wanted):
        say(f"Making an environment for the ComfyUI {comfyui_version(old)} in {old}")
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder)
        # A second PyTorch would take some GB. pip sees the shared packages and installs only what differs.
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", old / "requirements.txt")
        (folder / STAMP).write_text(wanted)
    return python


def ensure_comfy_cli() -> Path:
    """The registry's tool in an environment of its own: it requires much that the pack and ComfyUI do not."""
    folder = CACHE / "comfy-cli"
    if not is_made(folder, COMFY_CLI):
        say(f"Installing {COMFY_CLI} into {folder}")
        run(sys.executable, "-m", "venv", "--clear", folder)
        run(program(folder, "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", COMFY_CLI)
        (folder / STAMP).write_text(COMFY_CLI)
    return program(folder, "comfy")


def test(comfyui: Path, arguments: list[str]) -> int:
    old = Path(os.environ.get("COMFYUI_OLD_PATH", Path.home() / "comfy" / "ComfyUI-0.3.64"))
    hosts = [(comfyui, sys.executable)]
    if old.is_dir():
        hosts.append((old, str(ensure_old_environment(old))))
    else:
        say("No ComfyUI 0.3.64 ($COMFYUI_OLD_PATH, ~/comfy/ComfyUI-0.3.64): its tiers are left out")
    pytest = ["-m", "pytest", "-q", *arguments]
    # A process each: the host tier imports ComfyUI, whose `nodes` and `utils` are not this repository's.
    tiers = [
        ("ruff", [sys.executable, "-m", "ruff", "check", "."], comfyui),
        ("types", [sys.executable, "-m", "mypy"], comfyui),
        ("core", [sys.executable, *pytest, "tests/core"], comfyui),
        *(
            (f"{tier} {comfyui_version(host)}", [python, *pytest, f"tests/{tier}"], host)
            for host, python in hosts
            for tier in ("host", "server", "browser")
        ),
        ("package", [sys.executable, *pytest, "tests/package"], comfyui),
    ]
    environment = os.environ | {"COMFY_CLI": str(ensure_comfy_cli())}

    results = []
    for name, command, host in tiers:
        say(name)
        began = time.monotonic()
        code = subprocess.call(command, cwd=ROOT, env=environment | {"COMFYUI_PATH": str(host)})
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
    from benchmarks.piebench.run import parse, run, servers_for  # needs the environment

    options = parse(arguments)
    return run(servers_for(comfyui, options), options)


def translate(comfyui: Path, arguments: list[str]) -> int:
    from runs.translate.command import main as run_translate  # needs the environment

    return run_translate(comfyui, arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("demo", "test", "serve", "translate", "piebench"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command == "demo" and options.arguments:
        parser.error(f"demo takes no further arguments, got: {' '.join(options.arguments)}")

    comfyui = ensure_comfyui()
    ensure_environment(comfyui)
    if Path(sys.prefix).resolve() != VENV.resolve():  # from here on in the environment just made
        command = [str(program(VENV, "python")), str(Path(__file__).resolve()), *sys.argv[1:]]
        if os.name == "nt":
            return subprocess.call(command)
        os.execv(command[0], command)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then too
    if options.command == "demo":
        return demo(comfyui)
    commands = {"test": test, "serve": serve, "translate": translate, "piebench": piebench}
    return commands[options.command](comfyui, options.arguments)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  the Python at hand may be any
        sys.exit("Python 3.10 or newer is needed.")
    try:
        sys.exit(main())
    except (ServerError, PromptError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
