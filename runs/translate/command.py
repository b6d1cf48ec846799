"""Translate every picture of a table or a folder with a workflow, on one ComfyUI server or on many.

    python dev.py translate zerocon_sd15 edits.csv --output edited --engine processes 2
    python dev.py translate my_workflow_api.json pictures/ --output edited --set 8.edit_to=target --fix 12.steps=30

The workflow is one of ours by its name or a file in API format. A row of the table has a `picture` and the values that go to the
workflow's inputs. A stopped run goes on where it was with the same command; rows that failed are tried again.
"""

import argparse
import errno
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tools.comfy_client import PromptError
from tools.comfy_server import ROOT

from ..engine import run_all, say
from ..fleet import NoWorkers, fleet
from ..records import ERROR, Records
from ..servers.choice import add_engine_options, check_engine_options, model_folders_of, servers_of
from ..servers.identity import model_files
from ..servers.own import Setup
from .batches import in_batches
from .graph import Workflow, check_batches, measured, outputs, prune
from .mapping import Graph, Place, default_mapping, parse_fix, parse_set
from .report import Report
from .rows import PictureError, Translation
from .table import Entry, TableError, check_columns, read_entries

WORKFLOWS = ROOT / "workflows" / "api"
INTERRUPTED = 130
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GO_ON = "the same command goes on with them"


def ours() -> list[str]:
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py translate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", help=f"a file in API format, or one of {', '.join(ours())}")
    parser.add_argument("table", type=Path, help="a .csv, .jsonl or .parquet, or a folder of pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures, the rows and the report")
    parser.add_argument("--set", nargs="+", default=[], metavar="NODE.INPUT=COLUMN", help="what a column of the table goes to")
    parser.add_argument("--fix", nargs="+", default=[], metavar="NODE.INPUT=VALUE", help="a value for all rows")
    parser.add_argument("--keep", nargs="+", default=[], help="which images are results; default all that the workflow saves")
    parser.add_argument(
        "--metrics", nargs="*", metavar="KIND=NETWORK",
        help="measure each edit with Edit Metrics: pixels alone, or networks too, such as lpips=squeeze",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="so many rows at once that only differ in their picture")
    add_engine_options(parser)
    options = parser.parse_args(arguments)
    check_engine_options(parser, options)
    if options.batch < 1:
        parser.error(f"--batch {options.batch} is no number of rows; it begins at 1")
    return options


def main(comfyui: Path, arguments: Sequence[str]) -> int:
    """Runs what is not there yet, and returns the exit code: 1 if a row failed."""
    options = parse(arguments)
    try:
        entries = read_entries(options.table)
        translation = prepare(options, entries)
    except TableError as error:
        raise SystemExit(f"error: {error}") from None
    with Records(options.output / "rows.jsonl", ("name", "asked"), settings_of(translation.workflow)) as records:
        try:
            code = 1
            carry_out(comfyui, options, translation, entries, records)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except NoWorkers as error:
            say(f"error: {error}")
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SystemExit(
                f"error: {options.output} takes no more ({error.strerror}); make room and give the same command again"
            ) from None
        return conclude(options, translation, entries, records, code)


def carry_out(
    comfyui: Path, options: argparse.Namespace, translation: Translation, entries: Sequence[Entry], records: Records
) -> None:
    """Runs what `records` lack."""
    items = [translation.item(entry) for entry in entries]
    if all(map(records.has, items)):
        return
    models = model_files(translation.workflow.graph)
    setup = Setup(comfyui, model_folders_of(options, comfyui), hung_seconds=options.hung, models=models)
    engine = fleet(servers_of(options, setup), (PromptError, TableError, PictureError))
    if options.batch > 1:
        engine = in_batches(engine, translation, {entry.name: entry for entry in entries}, options.batch)
    run_all(items, records, engine)


def conclude(options: argparse.Namespace, translation: Translation, entries: Sequence[Entry], records: Records, code: int) -> int:
    """Reports on the rows that there are; returns the exit code, which is `code` where some are still to be done."""
    keys = [translation.item(entry).key for entry in entries]
    rows = [records.rows[key] for key in keys if key in records.rows]
    heading = f"{Path(options.workflow).stem}: {options.table.name}"
    report = Report(heading, rows, [*translation.workflow.kept], options.output)
    report.write()
    print("\n".join(report.summary()))
    print(f"look at {options.output / 'report.html'}")
    if len(rows) < len(keys):
        print(f"{len(keys) - len(rows)} of {len(keys)} rows are still to be done; {GO_ON}")
        return code
    return int(any(ERROR in row for row in rows))


def prepare(options: argparse.Namespace, entries: list[Entry]) -> Translation:
    """All that can be said of a run before a server is asked. Raises TableError."""
    columns = {column for entry in entries for column in entry.values}
    graph = read_workflow(options.workflow)
    for place, value in parse_fix(options.fix, graph).items():
        graph[place.node]["inputs"][place.field] = value
    mapped = parse_set(options.set, graph)
    mapped |= default_mapping(graph, columns, {**mapped, **parse_fix(options.fix, graph)})
    check_columns(entries, dict.fromkeys(mapped.values()), options.table)
    for place in mapped:
        if place.field and isinstance(graph[place.node]["inputs"][place.field], list):
            graph[place.node]["inputs"][place.field] = ""  # the column takes the link's place
    kept = outputs(graph, options.keep)
    shown = None
    if options.metrics is not None:
        networks = dict(text.split("=", 1) for text in options.metrics if "=" in text)
        graph, shown = measured(graph, next(iter(kept.values())), networks)
        texts = {"source_text": "source", "target_text": "target"}
        mapped |= {Place("metrics", field): column for field, column in texts.items() if column in columns}
    graph = prune(graph, [*kept.values(), *([shown] if shown else [])])
    workflow = Workflow(graph, {place: column for place, column in mapped.items() if place.node in graph}, kept, shown)
    workflow.picture  # noqa: B018  refuses where there is none
    if options.batch > 1:
        check_batches(workflow)
    if unused := columns - {*workflow.mapped.values(), "name"}:
        say(f"columns that go nowhere: {', '.join(sorted(unused))}")
    return Translation(workflow, options.table if options.table.is_dir() else options.table.parent, options.output)


def read_workflow(name: str) -> Graph:
    """Of a file, or of ours by its name. Raises TableError."""
    path = WORKFLOWS / f"{name}.json" if (WORKFLOWS / f"{name}.json").is_file() else Path(name)
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TableError(f"there is no workflow {name}; ours are {', '.join(ours())}") from None
    except ValueError as error:
        raise TableError(f"{path} is no JSON ({error})") from None
    if not isinstance(graph, dict) or not all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
        raise TableError(f"{path} is not in API format; in the page choose Workflow > Export (API)")
    return graph


def settings_of(workflow: Workflow) -> dict[str, str]:
    """What all rows of an output folder have in common."""
    text = json.dumps([workflow.graph, workflow.kept, sorted([str(p), c] for p, c in workflow.mapped.items())], sort_keys=True)
    return {"workflow": hashlib.sha256(text.encode()).hexdigest()[:16]}
