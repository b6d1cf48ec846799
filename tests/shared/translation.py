"""Small runs of `dev.py translate` for tests: pictures, a table, a workflow, and the command in this process or another."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
from PIL import Image

from runs.translate.command import main

ROOT = Path(__file__).parents[2]
TINY_COMFYUI = Path(__file__).parent / "tiny_comfyui"
COMMAND = """import sys
from pathlib import Path
from runs.translate.command import main
sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))"""


def make_job(folder: Path, count: int, words: str = "word") -> Path:
    """A table of `count` pictures with a column `target`, and the workflow that reads it; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"name": f"row{i}", "picture": f"{i}.png", "target": f"{words}{i}"} for i in range(count)]
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    write_table(folder, rows)
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Load Image"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}, "_meta": {"title": "Target"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "used": ["2", 0], "filename_prefix": "zerocon/edit"}},
    }
    (folder / "workflow.json").write_text(json.dumps(graph))
    return folder


def write_table(folder: Path, rows: list[dict]) -> None:
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def arguments(job: Path, output: Path, *more: object) -> list[str]:
    return [str(part) for part in (job / "workflow.json", job / "table.csv", "--output", output, *more)]


def translate(job: Path, output: Path, *more: object) -> int:
    return main(TINY_COMFYUI, arguments(job, output, *more))


def begin(job: Path, output: Path, *more: object, comfyui: Path = TINY_COMFYUI, **environment: str) -> subprocess.Popen:
    """The same as a process of its own, which may be killed."""
    command = [sys.executable, "-c", COMMAND, str(comfyui), *arguments(job, output, *more)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | environment)


def rows(output: Path) -> list[dict]:
    file = output / "rows.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def pictures(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): Image.open(path).tobytes() for path in (output / "edit").rglob("*.png")}


def servers(driver: subprocess.Popen) -> list[psutil.Process]:
    """The servers themselves that a driver has started, by their number."""
    found = [child for child in psutil.Process(driver.pid).children(recursive=True) if is_server(child)]
    return sorted(found, key=lambda process: process.cmdline()[process.cmdline().index("--base-directory") + 1])


def is_server(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return len(command) > 1 and command[1].endswith("main.py")
