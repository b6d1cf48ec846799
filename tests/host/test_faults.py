"""A few of the injected faults (tests/host/faults), and that the bench sees what a fault would leave behind."""

import gc

import pytest
import torch
from faults.bench import ERRORS, LOOPS, Bench, Fault
from in_process import GraphRunner


@pytest.fixture(scope="module")
def bench():
    yield Bench()
    gc.unfreeze()


def test_faults_leave_model_and_modes_as_they_were_and_no_tensor_alive(bench):
    faults = [*bench.draw(len(LOOPS), seed=1)]
    assert {fault.loop for fault in faults} == LOOPS.keys()
    assert {fault: wrong for fault in faults if (wrong := bench.inject(fault))} == {}
    results = bench.results()
    assert all(torch.equal(results[loop], tensor) for loop, tensor in bench.expected.items())


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("loop", ["inversion", "guidance", "CDS", "training"])
def test_a_backward_pass_that_breaks_keeps_nothing(bench, loop, kind):
    """Training ends well when it is cancelled, and autograd holds on to the pass that was."""
    backward = bench.loops[loop].backward
    assert backward and bench.inject(Fault(loop, "backward", backward[-len(backward) // 3], kind)) == []


def test_faults_reach_the_graphs(bench):
    """Each fault of an operation ends its run, in an error or as cancelled."""
    fault = next(fault for fault in bench.draw(100) if fault.place != "progress" and fault.kind == "error")
    runner = GraphRunner()
    with bench.broken(fault):
        run = runner(bench.loops[fault.loop].graph, bench.values)
    assert not run.success and "injected" in run.error


def test_what_is_left_behind_is_seen(bench):
    fault = next(bench.draw(1))
    weight = next(bench.values["model"].model.parameters())
    kept = []
    with torch.inference_mode():
        weight.add_(1)
        kept.append(torch.ones(1000))
        wrong = bench.inject(fault)
        weight.sub_(1)
    assert "model weights" in wrong and any("kept" in thing for thing in wrong)
