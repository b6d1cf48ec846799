"""Runs that were stopped go on where they were, whoever does the work."""

import os
import threading
import time
from functools import partial

import pytest
from pool_work import fails_at_two, square

from runs.engine import Item, attempt, here, pool, run_all
from runs.fleet import fleet
from runs.records import Records, read_rows

FIELDS = ("name", "number")


def items(count: int, run) -> list[Item]:
    return [Item(("square", number), partial(run, number)) for number in range(count)]


class Worker:
    """Remembers what it was asked, and by how many at a time at most."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked, self.busy, self.most = [], 0, 0
        self.lock = threading.Lock()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def square(self, number: int) -> dict:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        with self.lock:
            self.busy -= 1
            self.asked.append(number)
        return fails_at_two(number)


def records(folder, **settings) -> Records:
    return Records(folder / "out" / "records.jsonl", FIELDS, settings)


def test_every_item_is_done_once_and_rows_are_in_the_order_of_the_items(tmp_path):
    rows = run_all(items(5, square), records(tmp_path, steps=3), here)
    assert rows == [
        {"name": "square", "number": n, "value": n**2, "process": os.getpid(), "settings": {"steps": 3}} for n in range(5)
    ]
    assert read_rows(tmp_path / "out" / "records.jsonl") == rows


def test_a_pool_gives_the_same_rows_from_other_processes(tmp_path):
    rows = run_all(items(4, fails_at_two), records(tmp_path), pool(2))
    assert [row["value"] for row in rows] == [0, 1, 9]
    assert os.getpid() not in {row["process"] for row in rows}
    [failed] = [row for row in read_rows(tmp_path / "out" / "records.jsonl") if "error" in row]
    assert failed["number"] == 2 and failed["error"] == "ArithmeticError: two is not allowed"


def test_a_run_that_was_stopped_does_the_rest_alone(tmp_path, capsys):
    def stopped_at_three(number: int) -> dict:
        if number == 3:
            raise KeyboardInterrupt
        return square(number)

    with pytest.raises(KeyboardInterrupt):
        run_all(items(6, stopped_at_three), records(tmp_path), here)
    file = tmp_path / "out" / "records.jsonl"
    before = file.read_text()
    file.write_text(before[:-5])  # the last line cut off in the middle
    capsys.readouterr()
    done = []
    rows = run_all(items(6, lambda number: done.append(number) or square(number)), records(tmp_path), here)
    assert done == [2, 3, 4, 5] and [row["value"] for row in rows] == [0, 1, 4, 9, 16, 25]
    assert file.read_text().startswith(before[: before.rindex('{"name"')])
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]


def test_a_failure_is_a_row_that_is_tried_again_and_missing_from_the_answer(tmp_path, capsys):
    assert [row["value"] for row in run_all(items(4, fails_at_two), records(tmp_path), here)] == [0, 1, 9]
    said = capsys.readouterr().err
    assert "square 2 FAILED: ArithmeticError: two is not allowed" in said and "1 of 4 failed" in said
    [failed] = [row for row in read_rows(tmp_path / "out" / "records.jsonl") if "error" in row]
    assert failed["number"] == 2 and "in fails_at_two" in failed["traceback"]
    assert [row["value"] for row in run_all(items(4, square), records(tmp_path), here)] == [0, 1, 4, 9]
    assert capsys.readouterr().err.startswith("1/1,")


def test_workers_share_the_items_and_have_one_at_a_time_each(tmp_path):
    workers = [Worker("one"), Worker("two")]
    work = [Item(("square", n), lambda worker, n=n: worker.square(n)) for n in range(8)]
    rows = run_all(work, records(tmp_path), fleet(workers, ArithmeticError))
    assert [row["value"] for row in rows] == [n**2 for n in range(8) if n != 2]
    assert sorted(workers[0].asked + workers[1].asked) == list(range(8))
    assert all(worker.asked and worker.most == 1 for worker in workers)


def test_what_is_not_the_items_failure_ends_the_run(tmp_path):
    items = [Item(("square", 2), lambda worker: worker.square(2))]
    with pytest.raises(ArithmeticError):
        run_all(items, records(tmp_path), fleet([Worker("one")], KeyError))
    assert read_rows(tmp_path / "out" / "records.jsonl") == []
    with pytest.raises(ArithmeticError):
        attempt(partial(fails_at_two, 2), KeyError)


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    run_all(items(1, square), records(tmp_path, sizes=(1, 2)), here)
    assert records(tmp_path, sizes=(1, 2)).finished(items(1, square))
    with pytest.raises(SystemExit, match="choose another --output"):
        records(tmp_path, sizes=(1,))


def test_a_line_cut_off_in_the_middle_is_removed(tmp_path):
    file = tmp_path / "records.jsonl"
    assert read_rows(file) == []
    file.write_text('{"setting": "a"}\n{"sett')
    assert read_rows(file) == [{"setting": "a"}]
    assert file.read_text() == '{"setting": "a"}\n'
    file.write_text('{"sett')
    assert read_rows(file) == [] and file.read_text() == ""
