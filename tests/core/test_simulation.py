"""The simulation where the answer is known in closed form."""

import pytest

from runs.simulation import World, loss, shape, simulate

CALM = World(start=0.0, deaths=0.0, hangs=0.0, driver=0.0, row_bytes=0.0)


@pytest.mark.parametrize("workers", [1, 4, 100])
def test_equal_rows_that_divide_evenly_keep_all_busy(workers):
    outcome = simulate([2.0], 400, workers, CALM)
    assert outcome.hours * 3600 == pytest.approx(800 / workers) and outcome.efficiency == pytest.approx(1.0)
    assert (outcome.lost, outcome.failed) == (0, 0)


def test_the_last_row_is_waited_for():
    assert simulate([2.0], 5, 4, CALM).efficiency == pytest.approx(5 / 8)


def test_the_start_counts():
    outcome = simulate([2.0], 100, 1, World(100.0, 0.0, 0.0, driver=0.0, row_bytes=0.0))
    assert outcome.efficiency == pytest.approx(200 / 300)


def test_beyond_what_the_driver_serves_more_workers_do_not_help():
    world = World(0.0, 0.0, 0.0, driver=0.1, row_bytes=0.0)  # ten rows a second
    few, many = (simulate([1.0], 4000, workers, world) for workers in (50, 500))
    assert few.hours * 3600 == pytest.approx(400, rel=0.01) and many.hours == pytest.approx(few.hours, rel=0.01)
    assert few.efficiency == pytest.approx(10 / 50, rel=0.01)
    link = simulate([1.0], 4000, 50, World(0.0, 0.0, 0.0, driver=0.0, row_bytes=1e6, link=1e7))
    assert link.hours == pytest.approx(few.hours)


def test_losses_cost_what_was_done_and_a_start():
    world = World(30.0, 36.0, 0.0, driver=0.0, row_bytes=0.0)  # a death in 100 s of work
    outcome = simulate([1.0], 20_000, 1, world)
    # Of 20,000 s of work one death in 100 s, each with a start and half a row; three in a row at one row are 1 in a million.
    assert outcome.lost == pytest.approx(200, rel=0.2) and outcome.failed == 0
    assert outcome.hours * 3600 == pytest.approx(20_000 + 30 + outcome.lost * 30.5, rel=0.01)


def test_a_hung_worker_is_noticed_later():
    class Draw:
        def expovariate(self, rate):
            return 0.5

    assert loss(Draw(), 1.0, World(deaths=0.0, hangs=1.0, hung=60.0)) == (True, 60.5)
    assert loss(Draw(), 1.0, World(deaths=1.0, hangs=0.0, hung=60.0)) == (True, 0.5)
    assert loss(Draw(), 0.4, World(deaths=1.0, hangs=1.0)) == (False, 0.4)


def test_the_shape_has_a_median_of_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"seconds": {s}}}\n' for s in (2, 4, 12)) + '{"error": "no"}\n')
    assert shape(file) == [0.5, 1.0, 3.0]
    assert sum(time > 2 for time in shape(None)) / 10_000 == pytest.approx(0.02, abs=0.005)
