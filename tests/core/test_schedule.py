"""Who does what next."""

from runs.schedule import Loss, Schedule


def test_tasks_are_handed_out_in_order_and_once():
    schedule = Schedule("abc", ["one", "two"])
    assert [schedule.take("one"), schedule.take("two")] == ["a", "b"]
    schedule.finish("one")
    assert schedule.take("one") == "c" and not schedule.over
    for worker in ("one", "two"):
        schedule.finish(worker)
    assert schedule.take("one") is None and schedule.over


def test_a_lost_task_goes_to_another_worker_first():
    schedule = Schedule("abc", ["one", "two"])
    assert schedule.take("one") == "a"
    assert schedule.lose("one", "it died") == []
    assert schedule.take("one") == "b"  # not the same again
    assert schedule.take("two") == "a"


def test_a_worker_that_is_alone_gets_it_back():
    schedule = Schedule("a", ["one", "two"])
    schedule.take("one")
    schedule.lose("one", "it died")
    assert schedule.take("one") is None and not schedule.over  # the other one may come for it
    schedule.retire("two")
    assert schedule.take("one") == "a"


def test_a_task_that_brings_down_all_is_given_up_with_its_reasons():
    schedule = Schedule("ab", ["one", "two"], tries=2)
    schedule.take("one")
    assert schedule.lose("one", "it died") == []
    assert schedule.take("two") == "a"
    assert schedule.lose("two", "it hangs") == [Loss("one", "it died"), Loss("two", "it hangs")]
    assert schedule.take("one") == "b"
    schedule.finish("one")
    assert schedule.over


def test_what_was_given_back_is_nobodys_fault():
    schedule = Schedule("a", ["one"], tries=1)
    schedule.take("one")
    schedule.give_back("one")
    assert schedule.take("one") == "a"


def test_nothing_is_handed_out_once_it_is_closed_not_even_what_comes_back():
    schedule = Schedule("ab", ["one"])
    schedule.take("one")
    schedule.close()
    assert not schedule.over and schedule.left == 0
    schedule.lose("one", "it died")
    assert schedule.take("one") is None and schedule.over
