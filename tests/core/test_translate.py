"""What `dev.py translate` makes of tables and workflows before a server is asked, and of batches and reports on small servers."""

import copy
import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from translation import make_job, pictures, rows, translate, write_table

from runs.translate.command import main, parse, prepare
from runs.translate.graph import Workflow, links
from runs.translate.mapping import Place, fitting
from runs.translate.table import TableError, read_entries

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))


@pytest.fixture
def folder(tmp_path):
    return make_job(tmp_path / "job", 4)


def prepared(workflow: object, table: Path, *more: str) -> Workflow:
    options = parse([str(workflow), str(table), "--output", str(table.parent / "out"), *more])
    return prepare(options, read_entries(table)).workflow


def refused(match: str, *arguments: object) -> None:
    with pytest.raises(SystemExit, match=f"^error: {match}"):
        main(Path("nowhere"), [str(part) for part in arguments])


# Tables


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_kinds_of_tables_say_the_same(kind, tmp_path):
    wanted = [{"picture": "a/1.png", "target": "ein Hund, müde"}, {"picture": "2.png", "target": 'say "no"'}]
    table = tmp_path / f"table.{kind}"
    if kind == "csv":
        with table.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, wanted[0])
            writer.writeheader()
            writer.writerows(wanted)
    elif kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in wanted) + "\n\n", encoding="utf-8")
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(wanted), table)
    entries = read_entries(table)
    assert [entry.values for entry in entries] == wanted and [entry.name for entry in entries] == ["1", "2"]


def test_a_folder_gives_a_row_a_picture_named_by_its_place(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("2.PNG", "b/1.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [entry.name for entry in read_entries(tmp_path)] == ["2", "b/1"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("name,picture\na,1.png\nA,2.png\n", r"t.csv has 1 names that stand in several rows, such as a; give each its own name"),
        ("name,picture\na,1.png\nb\n", r"row 2 of t.csv has not as many cells as there are columns; quote cells with commas"),
        ("name,picture\n../a,1.png\n", r"row 1 of t.csv is named '../a', which is no name for a file below the output folder"),
        ("name,picture\n,\n", r"row 1 of t.csv has neither a name nor a picture; add one of these columns"),
        ("name,picture\n", r"\S+t.csv has no rows"),
    ],
)
def test_a_table_that_cannot_be_run_is_refused(text, match, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TableError, match=f"^{match}$"):
        read_entries(tmp_path / "t.csv")


def test_what_is_no_table_is_refused(folder, tmp_path):
    workflow, output = folder / "workflow.json", ("--output", tmp_path / "out")
    refused(
        r"there is no \S+gone.csv; give a table \(.csv, .jsonl, .parquet\) or a folder", workflow, folder / "gone.csv", *output
    )
    refused("workflow.json is no table that is read here; use .csv", workflow, workflow, *output)
    (tmp_path / "t.jsonl").write_text('{"name": "a"}\n[1]\n')
    refused("line 2 of t.jsonl is no object with the columns as its keys", workflow, tmp_path / "t.jsonl", *output)
    (tmp_path / "empty").mkdir()
    refused(r"the folder \S+ holds no picture \(", workflow, tmp_path / "empty", *output)
    refused("there is no workflow gone; ours are .*zerocon_sd15", "gone", folder / "table.csv", *output)
    refused(
        "table.csv has no column wanted; it has name, picture, target",
        workflow,
        folder / "table.csv",
        *output,
        "--set",
        "2.text=wanted",
    )
    (tmp_path / "page.json").write_text('{"nodes": []}')
    refused(r"\S+page.json is not in API format; in the page choose", tmp_path / "page.json", folder / "table.csv", *output)
    assert not (tmp_path / "out").exists()


# Workflows


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if not name.startswith(("attention", "augment", "soft"))])
def test_our_workflows_take_the_usual_columns_by_themselves(name, tmp_path):
    columns = {
        "name": "a",
        "picture": "a.png",
        "edit_from": "a cat",
        "edit_to": "a dog",
        "source": "one cat",
        "target": "one dog",
    }
    write_table(tmp_path, [columns])
    workflow = prepared(name, tmp_path / "table.csv")
    graph = workflow.filled(columns, ["up.image"], "a")
    values = [value for node in graph.values() for value in node["inputs"].values()]
    texts = [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode"]
    assert "up.image" in values and "example.png" not in values
    assert ("a cat" in values and "a dog" in values) or ("one cat" in texts and "one dog" in texts)
    assert all(link[0] in graph for _, _, link in links(graph))
    assert not any(node["class_type"] in ("ZeroConToyScene", "ImageStitch", "LossGraphNode") for node in graph.values())


def test_what_nobody_asked_for_is_not_run(tmp_path):
    write_table(tmp_path, [{"picture": "a.png", "edit_from": "a", "edit_to": "b"}])
    everything, edits = (prepared("zerocon_sd15", tmp_path / "table.csv", *keep) for keep in ([], ["--keep", "translation"]))
    assert [*everything.kept] == ["translation", "reconstruction", "source"] and [*edits.kept] == ["translation"]
    samplers = [sum(n["class_type"] == "SamplerCustomAdvanced" for n in w.graph.values()) for w in (everything, edits)]
    assert samplers == [2, 1]
    with pytest.raises(TableError, match=r"the workflow keeps no gone; it has translation, reconstruction, source"):
        prepared("zerocon_sd15", tmp_path / "table.csv", "--keep", "gone")


def test_columns_and_values_go_where_they_are_told(tmp_path):
    write_table(tmp_path, [{"picture": "a.png", "told": "a cat sits", "weight": "0.25"}])
    workflow = prepared(
        "zerocon_sd15", tmp_path / "table.csv", "--set", "8.caption=told", "14.lambda_xa=weight", "--fix", "11.steps=7",
        "8.edit_to=a dog",
    )  # fmt: skip
    before = copy.deepcopy(workflow.graph)
    graph = workflow.filled({"picture": "a.png", "told": "a cat sits", "weight": "0.25"}, ["up"], "a")
    assert graph["8"]["inputs"]["caption"] == "a cat sits" and graph["14"]["inputs"]["lambda_xa"] == 0.25
    assert graph["11"]["inputs"]["steps"] == 7 and graph["8"]["inputs"]["edit_to"] == "a dog"
    assert "ZeroConAutoCaption" not in {node["class_type"] for node in graph.values()}  # its link gave way to the column
    assert workflow.graph == before
    with pytest.raises(TableError, match=r"the workflow has no node 99; it has 2 \(Load Checkpoint\)"):
        prepared("zerocon_sd15", tmp_path / "table.csv", "--set", "99.text=told")
    with pytest.raises(TableError, match=r"node 8 \(Edit Direction\) has no input to; it has caption, edit_from"):
        prepared("zerocon_sd15", tmp_path / "table.csv", "--set", "8.to=told")
    assert fitting("3", 1, "") == 3 and fitting("true", False, "") is True and fitting("3", "text", "") == "3"
    with pytest.raises(TableError, match=r"^12.steps takes a int, the table says 'many'$"):
        fitting("many", 1, str(Place("12", "steps")))


def test_metrics_compare_the_edit_with_what_is_encoded(tmp_path):
    write_table(tmp_path, [{"picture": "a.png", "edit_from": "a", "edit_to": "b", "target": "a b"}])
    workflow = prepared("zerocon_sd15", tmp_path / "table.csv", "--keep", "translation", "--metrics", "lpips=squeeze")
    inputs = workflow.filled({"picture": "a", "edit_from": "a", "edit_to": "b", "target": "a b"}, ["up"], "a")["metrics"][
        "inputs"
    ]
    assert (inputs["source"], inputs["edited"]) == (["4", 0], ["18", 0])
    assert (inputs["lpips"], inputs["clip"], inputs["target_text"]) == ("squeeze", "off", "a b")


def test_batches_are_refused_where_a_picture_would_not_come_out_as_alone(tmp_path):
    write_table(tmp_path, [{"picture": "a.png", "edit_from": "a", "edit_to": "b"}])
    batched = (tmp_path / "table.csv", "--batch", "2", "--keep", "translation")
    with pytest.raises(
        TableError, match=r"^--batch: it is not known of Auto Caption \(node 7\) that it treats the pictures of a"
    ):
        prepared("zerocon_toy", *batched)  # its captions are a list, for each of which the rest would run over the whole batch
    prepared("zerocon_toy", *batched, "--set", "9.caption=edit_from")


# Batches and reports, on small servers


def test_a_batch_gives_what_its_rows_give_alone_and_fails_row_by_row(tmp_path, capsys):
    job = make_job(tmp_path / "job", 7)
    entries = [{"name": f"row{i}", "picture": f"{i}.png", "target": "one" if i % 2 else "other"} for i in range(7)]
    write_table(job, entries)
    Image.new("RGB", (4, 4)).save(job / "3.png")  # of another size than the others with its words
    (job / "4.png").unlink()
    assert translate(job, tmp_path / "alone") == translate(job, tmp_path / "batched", "--batch", 2) == 1
    assert pictures(tmp_path / "batched") == pictures(tmp_path / "alone") and len(pictures(tmp_path / "alone")) == 6
    together = {row["name"]: row["together"] for row in rows(tmp_path / "batched") if "error" not in row}
    assert together == {"row0": 2, "row2": 2, "row1": 2, "row5": 2, "row3": 1, "row6": 1}
    (job / "6.png").write_bytes((job / "6.png").read_bytes()[:45])  # its head can be read, so it is put into a batch
    write_table(job, [entry | {"target": "new"} for entry in entries])
    capsys.readouterr()
    assert translate(job, tmp_path / "batched", "--batch", 4) == 1
    assert sorted(re.findall(r"(row\d) \w+ FAILED", capsys.readouterr().err)) == ["row4", "row6"]


def test_a_row_that_asks_for_something_else_is_run_again(folder, tmp_path, capsys):
    assert translate(folder, tmp_path / "out") == 0
    before = pictures(tmp_path / "out")
    table = folder / "table.csv"
    table.write_text(table.read_text().replace("word2", "another"))
    capsys.readouterr()
    assert translate(folder, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert said.err.startswith("1/1, ") and "4 of 4 rows done" in said.out
    changed = {name for name, picture in pictures(tmp_path / "out").items() if picture != before[name]}
    assert changed == {"edit/row2.png"}


def test_the_report_has_every_row_and_says_what_failed(tmp_path):
    job = make_job(tmp_path / "job & more", 3, words="<b>bold</b>")
    (job / "1.png").unlink()
    assert translate(job, tmp_path / "out") == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<tr") == 4 and "2 of 3 rows done, 1 failed" in page and "there is no picture" in page
    assert "&lt;b&gt;bold&lt;/b&gt;0" in page and "<b>bold" not in page
    assert 'src="edit/row0.png"' in page and 'src="../job%20%26%20more/0.png"' in page
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert [line["name"] for line in lines] == ["row0", "row1", "row2"] and lines[0]["edit"] == "edit/row0.png"
    assert "there is no picture" in lines[1]["error"]
    assert Image.open(tmp_path / "out" / "sheet.jpg").width > 300
