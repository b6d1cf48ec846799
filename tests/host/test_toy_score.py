"""Held-out edits and what the test bed counts, on pictures whose score is known."""

import numpy as np
import pytest
import torch
from zerocon_pack.benchmarks.quality.studies import STUDIES
from zerocon_pack.benchmarks.toy.bench import Batch, Bench
from zerocon_pack.benchmarks.toy.edits import ATTRIBUTES, KINDS, draw_edits, pictures
from zerocon_pack.benchmarks.toy.score import score
from zerocon_pack.zerocon_core.toyworld.scene import bystander_mask, render


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch(Bench(), draw_edits(8, first=40))


def renderings(batch: Batch, side: str) -> torch.Tensor:
    return pictures([getattr(edit, side) for edit in batch.edits])


def test_a_number_always_gives_the_same_edit():
    later = draw_edits(3, first=2)
    assert draw_edits(5)[2:] == later
    for edit in later:
        changed = {name for name in ATTRIBUTES if getattr(edit.source, name) != getattr(edit.target, name)}
        assert changed == ({edit.kind} - {"identity"})
        assert (edit.source.pose, edit.source.background, edit.source.bystander) == (
            edit.target.pose, edit.target.background, edit.target.bystander,
        )  # fmt: skip


def test_the_true_edit_scores_best(batch):
    for record in score(batch, renderings(batch, "target")):
        assert record["success"] and record["others kept"] and record["pose kept"]
        assert record["background"] == record["bystander"] == record["truth"] == float("inf")


def test_doing_nothing_keeps_everything_and_edits_nothing(batch):
    for record in score(batch, renderings(batch, "source")):
        assert record["success"] == (record["kind"] == "identity")
        assert record["background"] == float("inf")
        assert np.isfinite(record["truth"]) == (record["kind"] != "identity")


def test_background_and_bystander_are_measured_in_their_places(batch):
    """A constant error of 0.1 in the bystander alone."""
    images = renderings(batch, "target")
    places = torch.from_numpy(np.stack([bystander_mask(edit.source) for edit in batch.edits])) > 0.5
    images[places] += 0.1
    for i, record in enumerate(score(batch, images)):
        assert record["bystander"] == pytest.approx(20, abs=1e-3)
        truth = torch.from_numpy(render(batch.edits[i].target))
        unchanged = (batch.images[i] == truth).all(-1)
        share = float((places[i] & unchanged).sum() / unchanged.sum())
        assert record["background"] == pytest.approx(20 - 10 * np.log10(share), abs=1e-3)


@pytest.mark.parametrize("curves", STUDIES.values(), ids=STUDIES)
def test_no_two_points_of_a_curve_are_the_same_setting(curves):
    assert len({(curve.name, curve.over) for curve in curves}) == len(curves)
    for curve in curves:
        assert len({repr(method) for method in curve.points.values()}) == len(curve.points)


def test_every_kind_of_edit_has_a_column(batch):
    assert {record["kind"] for record in score(batch, renderings(batch, "source"))} == set(KINDS)
