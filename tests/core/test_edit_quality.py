"""What the benchmark of edits counts, on pictures whose score is known."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zerocon_core.toyworld import classifier, scene

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import edit_quality
import toy_bench


@pytest.fixture(scope="module")
def batch() -> toy_bench.Batch:
    judge = classifier.load_classifier()
    bench = SimpleNamespace(
        core=SimpleNamespace(scene=scene), classify=lambda images: classifier.classify(images, judge)
    )  # fmt: skip
    return toy_bench.Batch(bench, toy_bench.draw_edits(scene, 8, first=40))


def renderings(batch: toy_bench.Batch, side: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([scene.render(getattr(edit, side)) for edit in batch.edits]))


def test_a_number_always_gives_the_same_edit():
    later = toy_bench.draw_edits(scene, 3, first=2)
    assert toy_bench.draw_edits(scene, 5)[2:] == later
    for edit in later:
        changed = {name for name in toy_bench.KINDS[:3] if getattr(edit.source, name) != getattr(edit.target, name)}
        assert changed == ({edit.kind} - {"identity"})
        assert (edit.source.pose, edit.source.background, edit.source.bystander) == (
            edit.target.pose, edit.target.background, edit.target.bystander,
        )  # fmt: skip


def test_the_true_edit_scores_best(batch):
    for record in toy_bench.score(batch, renderings(batch, "target")):
        assert record["success"] and record["others kept"] and record["pose kept"]
        assert record["background"] == record["bystander"] == record["truth"] == float("inf")


def test_doing_nothing_keeps_everything_and_edits_nothing(batch):
    for record in toy_bench.score(batch, renderings(batch, "source")):
        assert record["success"] == (record["kind"] == "identity")
        assert record["background"] == float("inf")
        assert np.isfinite(record["truth"]) == (record["kind"] != "identity")


def test_background_and_bystander_are_measured_in_their_places(batch):
    """A constant error of 0.1 in the bystander alone."""
    images = renderings(batch, "target")
    places = torch.from_numpy(np.stack([scene.bystander_mask(edit.source) for edit in batch.edits])) > 0.5
    images[places] += 0.1
    for i, record in enumerate(toy_bench.score(batch, images)):
        assert record["bystander"] == pytest.approx(20, abs=1e-3)
        truth = torch.from_numpy(scene.render(batch.edits[i].target))
        unchanged = (batch.images[i] == truth).all(-1)
        share = float((places[i] & unchanged).sum() / unchanged.sum())
        assert record["background"] == pytest.approx(20 - 10 * np.log10(share), abs=1e-3)


def row(method: str, success: float, background: float) -> dict:
    return {"method": method, "success": success, "background": background}


def test_the_front_holds_what_nothing_beats_in_both():
    made = [row("a", 0.9, 20), row("b", 0.8, 22), row("c", 0.8, 21), row("d", 0.7, 21.5), row("e", 0.9, 20), row("f", 0.1, 30)]
    assert [r["method"] for r in edit_quality.front(made)] == ["a", "b", "e", "f"]


def record(kind: str, success: bool, background: float) -> dict:
    return {"kind": kind, "success": success, "others kept": True, "pose kept": success, "background": background,
            "bystander": 10.0, "truth": 15.0}  # fmt: skip


def test_identities_have_columns_of_their_own():
    found = edit_quality.figures([record("colour", True, 20), record("shape", False, 30), record("identity", True, 40)])
    assert (found["success"], found["background"], found["pose kept"]) == (0.5, 25, 0.5)
    assert (found["colour"], found["shape"], found["pattern"]) == (1, 0, None)
    assert (found["identity"], found["identity background"], found["edits"]) == (1, 40, 3)


def test_a_table_leaves_out_columns_without_values():
    curve = edit_quality.over("m", "strength", (0.5,), toy_bench.SDEdit)
    line = {"setting": repr(toy_bench.SDEdit(0.5)), "count": 2, "seconds": 3.0, "edits": [record("colour", True, 20)] * 2}
    other = {"setting": repr(toy_bench.SDEdit(0.7)), "count": 1, "seconds": 9.0, "edits": [record("colour", False, 10)]}
    head, _, cells = edit_quality.table(edit_quality.rows([curve], [line, other])).splitlines()
    assert (
        head
        == "| method | over | success | colour | others kept | pose kept | background | bystander | truth | seconds | front |"
    )
    assert cells == "| m | strength 0.5 | 100% | 100% | 100% | 100% | 20.0 | 10.0 | 15.0 | 1.5 | yes |"


def test_a_line_cut_off_in_the_middle_is_dropped(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text('{"setting": "a"}\n{"sett')
    assert edit_quality.read_lines(file) == [{"setting": "a"}]
    assert file.read_text() == '{"setting": "a"}\n'


@pytest.mark.parametrize("curves", edit_quality.STUDIES.values(), ids=edit_quality.STUDIES)
def test_no_two_points_of_a_curve_are_the_same_setting(curves):
    assert len({(curve.name, curve.over) for curve in curves}) == len(curves)
    for curve in curves:
        assert len({repr(method) for method in curve.points.values()}) == len(curve.points)
