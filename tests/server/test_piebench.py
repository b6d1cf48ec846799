"""PIE-Bench on a few toy pictures, over HTTP."""

import json

import pytest
from PIL import Image

from benchmarks.piebench.dataset import make_toy_set
from benchmarks.piebench.graphs import METHODS
from benchmarks.piebench.run import parse, run
from runs.servers.identity import Standard
from runs.servers.running import RunningServer


@pytest.fixture
def server(client):
    return RunningServer(client.url, Standard())


@pytest.fixture
def options(tmp_path):
    return parse(["--checkpoint", "toy", "--steps", "2", "--iterations", "2", "--output", str(tmp_path / "out")])


def rows(options) -> list[dict]:
    return [json.loads(line) for line in (options.output / "rows.jsonl").read_text().splitlines()]


def test_every_method_edits_and_measures_every_picture(server, options, tmp_path, capsys):
    options.images, options.types = tmp_path, "1"  # two pictures, the second with a mask over everything
    make_toy_set(tmp_path, 4)
    assert run([server], options) == 0
    found = {(row["key"], row["method"]): row for row in rows(options)}
    assert len(found) == 2 * len(METHODS)
    for row in found.values():
        background = row["metrics"]["background_psnr"]
        assert (background is None) == row["covered"] and row["metrics"]["psnr"] > 5
    assert sum(row["covered"] for row in found.values()) == len(METHODS)
    assert len({row["metrics"]["psnr"] for row in found.values()}) == len(found)
    pictures = [*options.output.glob("*/*_toy/*.png")]
    assert len(pictures) == len(found) and {Image.open(picture).size for picture in pictures} == {(64, 64)}
    assert (options.output / "table.md").read_text().strip() in capsys.readouterr().out


def test_a_stopped_run_goes_on_where_it_was(server, options, capsys):
    options.methods, options.limit = ["ddim"], 2
    assert run([server], options) == 0
    file = options.output / "rows.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(first + "\n" + second[:20])
    capsys.readouterr()
    assert run([server], options) == 0
    assert "1/1, 0 min left: 000000000001 ddim" in capsys.readouterr().err
    assert file.read_text().splitlines()[0] == first
    again = rows(options)[1]
    assert again["metrics"] == json.loads(second)["metrics"]  # the same bits


def test_rows_of_other_settings_are_not_mixed(server, options):
    options.methods, options.limit = ["ddim"], 1
    assert run([server], options) == 0
    options.steps = 4
    with pytest.raises(SystemExit, match="choose another --output"):
        run([server], options)
    assert len(rows(options)) == 1


def test_an_edit_that_fails_is_reported_and_tried_again(server, options, capsys):
    options.methods, options.limit, options.side = ["ddim"], 1, 8  # smaller than SSIM's window
    for _ in range(2):
        assert run([server], options) == 1
        said = capsys.readouterr().err
        assert "1/1" in said and "000000000000 ddim FAILED: PromptError: Edit Metrics: SSIM needs" in said
        assert "1 of 1 failed" in said
    assert [row["key"] for row in rows(options)] == ["000000000000"] * 2 and "error" in rows(options)[0]
