"""Runs over servers that are killed, hang, differ, or are missing: real processes with next to nothing in them."""

import errno
import os
import re
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from translation import TINY_COMFYUI, begin, make_job, pictures, rows, servers, translate

from tools.comfy_server import comfy_server

PATIENCE = 120


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def names(output) -> list[str]:
    return sorted(row["name"] for row in rows(output))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"), 16)


@pytest.fixture(scope="module")
def alone(job, tmp_path_factory) -> dict[str, bytes]:
    """What one server makes of the job, undisturbed."""
    output = tmp_path_factory.mktemp("alone")
    assert translate(job, output) == 0
    assert len({*pictures(output).values()}) == 16
    return pictures(output)


def test_killed_hung_and_restarted_it_ends_as_one_server_undisturbed(job, alone, tmp_path):
    output = tmp_path / "out"
    command = (job, output, "--engine", "processes", 2, "--hung", 2)
    driver = begin(*command, TINY_SECONDS="0.3")
    wait_for(lambda: len(rows(output)) >= 2)
    first, second = servers(driver)
    first.kill()
    wait_for(lambda: len(rows(output)) >= 5)
    second.suspend()
    wait_for(lambda: second not in servers(driver))
    wait_for(lambda: len(rows(output)) >= 8)
    left = servers(driver)
    driver.kill()
    said = driver.communicate()[1].decode()
    assert re.search(r"server 1 was lost at row\d+ \w+: .*closed the connection.* \(log: .*server.log\)", said)
    assert re.search(r"server 2 was lost at row\d+ \w+: .*(no sign of life for 2 s|does not answer)", said)
    wait_for(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left))
    before = len(rows(output))
    assert 8 <= before < 16
    again = begin(*command)
    assert again.wait(PATIENCE) == 0
    said = again.communicate()[1].decode()
    assert f"/{16 - before}, " in said and "FAILED" not in said
    assert names(output) == sorted(f"row{i}" for i in range(16))
    assert pictures(output) == alone


def test_two_runs_on_one_folder_are_refused(job, tmp_path):
    output = tmp_path / "out"
    driver = begin(job, output, TINY_SECONDS="0.3")
    wait_for(lambda: rows(output))
    with pytest.raises(SystemExit, match="another run is writing to .*rows.jsonl; wait for it or choose another --output"):
        translate(job, output)
    driver.kill()
    driver.communicate()
    assert translate(job, output) == 0  # the lock went with its owner


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent a Ctrl-C there")
def test_at_ctrl_c_what_is_under_way_is_finished_and_the_rest_can_be_done_later(job, alone, tmp_path):
    output = tmp_path / "out"
    driver = begin(job, output, TINY_SECONDS="0.5")
    wait_for(lambda: len(rows(output)) >= 2)
    driver.send_signal(signal.SIGINT)
    out, said = (text.decode() for text in driver.communicate(timeout=PATIENCE))
    assert driver.returncode == 130
    done = len(rows(output))
    assert 3 <= done < 16 and "once more to drop it" in said and "was lost" not in said
    assert f"{16 - done} of 16 rows are still to be done; the same command goes on with them" in out
    assert (output / "report.html").exists()
    assert translate(job, output) == 0 and pictures(output) == alone


def test_a_row_that_brings_down_every_server_does_not_stop_the_others(tmp_path, capsys):
    job = make_job(tmp_path / "job", 3)
    table = (job / "table.csv").read_text()
    (job / "table.csv").write_text(table.replace("word1", "crash"))
    assert translate(job, tmp_path / "out", "--engine", "processes", 2) == 1
    [failed] = [row for row in rows(tmp_path / "out") if "error" in row]
    assert failed["name"] == "row1" and failed["error"].startswith("Lost: 3 workers were lost at it (server ")
    assert names(tmp_path / "out") == ["row0", "row1", "row2"]
    assert "2 of 3 rows done, 1 failed" in capsys.readouterr().out


def test_failures_are_rows_with_their_sentence_and_tried_again(tmp_path, capsys):
    job = make_job(tmp_path / "job", 4)
    (job / "1.png").unlink()
    (job / "2.png").write_bytes((job / "2.png").read_bytes()[:45])
    table = (job / "table.csv").read_text()
    (job / "table.csv").write_text(table.replace("word3", "refuse"))
    assert translate(job, tmp_path / "out") == 1
    errors = {row["name"]: row["error"] for row in rows(tmp_path / "out") if "error" in row}
    assert errors["row1"] == f"PictureError: there is no picture {job / '1.png'}"
    assert errors["row2"].startswith(f"PictureError: {job / '2.png'} cannot be read as a picture (")
    assert errors["row3"] == "PromptError: Tiny: it was told to refuse"
    assert capsys.readouterr().err.count("FAILED") == 3
    (job / "table.csv").write_text(table)
    assert translate(job, tmp_path / "out") == 1
    assert "/3, " in capsys.readouterr().err  # the two that still fail, and the one that asks for something else now


def test_a_server_that_is_not_like_the_first_gets_nothing(job, alone, tmp_path, capsys):
    with comfy_server(TINY_COMFYUI, tmp_path / "a", TINY_SECONDS="0.3") as one:
        with comfy_server(TINY_COMFYUI, tmp_path / "b", TINY_SECONDS="0.3", TINY_PACK="2") as other:
            assert translate(job, tmp_path / "out", "--servers", one.url, other.url) == 0
    assert len({row["server"] for row in rows(tmp_path / "out")}) == 1
    said = capsys.readouterr().err
    assert re.search(r"did not start: its pack is \d, that of http\S+ is \d; all servers of a run must be alike", said)
    assert pictures(tmp_path / "out") == alone


def test_servers_without_the_model_are_named_and_the_run_ends(tmp_path, capsys):
    job = make_job(tmp_path / "job", 2)
    graph = (job / "workflow.json").read_text()
    loader = '{"0": {"class_type": "UNETLoader", "inputs": {"unet_name": "big.safetensors"}}, '
    graph = graph.replace('"used": ["2", 0]', '"used": ["2", 0], "model": ["0", 0]')
    (job / "workflow.json").write_text(loader + graph.removeprefix("{"))
    assert translate(job, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "it has no big.safetensors; put the file into its models folder" in said.err
    assert "error: no worker is left for 2 items" in said.err and "2 of 2 rows are still to be done" in said.out


def test_a_full_disk_ends_the_run_and_is_named(job, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("runs.translate.rows.write_whole", full)
        with pytest.raises(SystemExit, match=r"takes no more \(No space left on device\); make room and give the same command"):
            translate(job, tmp_path / "out")
    assert rows(tmp_path / "out") == []
    assert translate(job, tmp_path / "out") == 0


def test_a_server_of_ours_keeps_no_files_of_the_rows(job, tmp_path):
    assert translate(job, tmp_path / "out") == 0
    base = tmp_path / "out" / "servers" / "1"
    assert not [*base.rglob("*.png"), *base.rglob("*.image")]
