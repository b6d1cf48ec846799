"""What the benchmark of edits makes of its records."""

from dataclasses import dataclass

from benchmarks.quality.report import Curve, figures, front, rows, table


def row(method: str, success: float, background: float) -> dict:
    return {"method": method, "success": success, "background": background}


def test_the_front_holds_what_nothing_beats_in_both():
    made = [row("a", 0.9, 20), row("b", 0.8, 22), row("c", 0.8, 21), row("d", 0.7, 21.5), row("e", 0.9, 20), row("f", 0.1, 30)]
    assert [r["method"] for r in front(made)] == ["a", "b", "e", "f"]


def record(kind: str, success: bool, background: float) -> dict:
    return {"kind": kind, "success": success, "others kept": True, "pose kept": success, "background": background,
            "bystander": 10.0, "truth": 15.0}  # fmt: skip


def test_identities_have_columns_of_their_own():
    found = figures([record("colour", True, 20), record("shape", False, 30), record("identity", True, 40)])
    assert (found["success"], found["background"], found["pose kept"]) == (0.5, 25, 0.5)
    assert (found["colour"], found["shape"], found["pattern"]) == (1, 0, None)
    assert (found["identity"], found["identity background"], found["edits"]) == (1, 40, 3)


@dataclass(frozen=True)
class SomeMethod:
    strength: float
    mask: int | None = None


def test_a_table_leaves_out_columns_without_values():
    curve = Curve("m", "strength", {0.5: SomeMethod(0.5)})
    setting = "SomeMethod(strength=0.5, mask=None)"
    line = {"setting": setting, "count": 2, "seconds": 3.0, "edits": [record("colour", True, 20)] * 2}
    other = {"setting": repr(SomeMethod(0.7)), "count": 1, "seconds": 9.0, "edits": [record("colour", False, 10)]}
    head, _, cells = table(rows([curve], [line, other])).splitlines()
    assert (
        head
        == "| method | over | success | colour | others kept | pose kept | background | bystander | truth | seconds | front |"
    )
    assert cells == "| m | strength 0.5 | 100% | 100% | 100% | 100% | 20.0 | 10.0 | 15.0 | 1.5 | yes |"


def test_what_only_masks_beat_is_said_so():
    points = {0.5: SomeMethod(0.5), 0.7: SomeMethod(0.7, mask=0), 0.9: SomeMethod(0.9)}
    background = {0.5: 20, 0.7: 25, 0.9: 15}
    lines = [
        {"setting": repr(method), "count": 1, "seconds": 1.0, "edits": [record("colour", True, background[value])]}
        for value, method in points.items()
    ]
    made = table(rows([Curve("m", "strength", points)], lines)).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in made] == ["but for masks", "yes", ""]


def test_half_of_the_strengths_are_the_first_third_and_so_on():
    curve = Curve("m", "strength", {value: SomeMethod(value) for value in (0.1, 0.2, 0.3)})
    assert list(curve.thinned().points) == [0.1, 0.3]
