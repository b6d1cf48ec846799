"""A few turns of the long run (queue_runs.py), and that its verdict sees what grows and what changes."""

import pytest
from queue_runs import WORKFLOWS, run_many, verdict

STEADY = {"tensors": 10, "bytes": 1000, "rss": 100_000}


def test_same_prompts_give_the_same_bits_and_keep_no_tensor(client):
    turn = len(WORKFLOWS)
    bits, held = run_many(client, 3 * turn, every=turn)
    assert bits.keys() == WORKFLOWS.keys() and len(held) == 3
    del held[turn]  # the first turn loads what stays
    assert verdict(bits, held) == []


@pytest.mark.parametrize(
    ("bits", "last", "said"),
    [
        ({"a": {"0", "1"}}, STEADY, "a gave 2 different results"),
        ({"a": {"0"}}, STEADY | {"tensors": 11}, "tensors grew"),
        ({"a": {"0"}}, STEADY | {"bytes": 1001}, "bytes grew"),
        ({"a": {"0"}}, STEADY | {"rss": 103_000}, "resident memory grew"),
    ],
)
def test_the_verdict_sees_growth_and_other_bits(bits, last, said):
    [wrong] = verdict(bits, {50: STEADY, 100: last})
    assert said in wrong
