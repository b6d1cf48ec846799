"""Scenes of the tabletop: what can stand on it, what it is called, and what an edit leaves alone."""

from dataclasses import replace

import pytest

from zerocon_core.tabletop import captions, edits, sampling
from zerocon_core.tabletop.scene import COLOURS, MATERIALS, SHAPES, SceneError, apart, inside_picture

SCENES = sampling.held_out_scenes(200)
TWO = sampling.held_out_scenes(20, solids=2)


def test_a_seed_is_a_scene():
    assert sampling.held_out_scenes(3) == sampling.held_out_scenes(5)[:3]
    assert SCENES[0] == sampling.scene_from_seed(sampling.HELD_OUT_SEED)
    assert len({captions.caption(s) for s in SCENES}) > 180


def test_training_never_draws_a_held_out_scene():
    assert not set(SCENES) & {sampling.scene_from_seed(seed) for seed in range(200)}


def test_every_attribute_is_drawn():
    solids = [solid for scene in SCENES for solid in scene.solids]
    assert {s.colour for s in solids} == set(COLOURS)
    assert {(s.shape, s.material) for s in solids} == {(s, m) for s in SHAPES for m in MATERIALS}
    assert 60 < sum(len(scene.solids) == 2 for scene in SCENES) < 140


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_solids_can_be_asked_for(count):
    assert all(len(scene.solids) == count for scene in sampling.held_out_scenes(20, solids=count))


def test_solids_fit_whatever_their_shape():
    for scene in TWO:
        assert apart(*scene.solids) >= 0 and all(inside_picture(s, scene.camera) for s in scene.solids)
        for number, solid in enumerate(scene.solids):
            for shape in SHAPES:
                assert edits.change(scene, solid.shape, shape).solids[number].shape == shape


def test_a_caption_names_solids_from_left_to_right():
    scene = SCENES[0]
    left, right = (scene.solids[number] for number in captions.left_to_right(scene))
    assert captions.caption(scene) == f"a {left} and a {right} on a {scene.floor.pattern} floor"
    assert captions.caption(replace(scene, solids=scene.solids[::-1])) == captions.caption(scene)
    assert set(captions.caption(scene).split()) <= set(captions.VOCABULARY)


def test_a_solid_is_found_by_what_is_said_of_it():
    for scene in TWO:
        for number, solid in enumerate(scene.solids):
            for name in (solid.shape, solid.colour, f"the {solid.colour} {solid.shape}", str(solid)):
                assert captions.solid_named(scene, name) == number


def test_an_edit_changes_one_thing():
    scene = TWO[0]
    first, second = scene.solids
    colour = next(c for c in COLOURS if c not in (first.colour, second.colour))
    assert edits.change(scene, first.shape, colour) == replace(scene, solids=(replace(first, colour=colour), second))
    assert edits.change(scene, "the floor", "dotted") == replace(scene, floor=replace(scene.floor, pattern="dotted"))
    assert edits.remove(scene, second.colour) == replace(scene, solids=(first,))


def test_a_solid_can_be_added():
    scene = sampling.held_out_scenes(1, solids=1)[0]
    edited = edits.add(scene, seed=4)
    assert edited.solids[0] == scene.solids[0] and edited == edits.add(scene, seed=4)
    assert edited.solids[1].colour != scene.solids[0].colour and edited.solids[1].shape != scene.solids[0].shape


@pytest.mark.parametrize(
    "name, word, message",
    [
        ("floor", "wooden", "There is no floor 'wooden' on the tabletop: use one of plain, striped, checked, dotted."),
        ("{shape}", "pink", "There is no colour, shape or material 'pink' on the tabletop: use one of red, "),
        ("teapot", "red", "No solid is called 'teapot' in this scene: there is a "),
        ("the", "red", "No solid is called 'the' in this scene: there is a "),
    ],
)
def test_unknown_words_are_refused(name, word, message):
    scene = TWO[0]
    with pytest.raises(SceneError) as error:
        edits.change(scene, name.format(shape=scene.solids[0].shape), word)
    assert str(error.value).startswith(message)


def test_a_name_of_two_solids_is_refused():
    scene = TWO[0]
    twins = replace(scene, solids=tuple(replace(s, material="shiny") for s in scene.solids))
    with pytest.raises(SceneError, match="Several solids are called 'shiny' in this scene: there is a shiny"):
        captions.solid_named(twins, "shiny")


def test_solids_that_overlap_are_refused():
    scene = TWO[0]
    first, second = scene.solids
    with pytest.raises(SceneError, match="would overlap: move them apart or make them smaller.$"):
        replace(scene, solids=(first, replace(second, x=first.x + 0.3, y=first.y)))


def test_a_solid_that_leaves_the_picture_is_refused():
    scene = sampling.held_out_scenes(1, solids=1)[0]
    with pytest.raises(SceneError, match="would leave the picture: move it to the middle or make it smaller.$"):
        replace(scene, solids=(replace(scene.solids[0], x=2.0),))


@pytest.mark.parametrize("count", [0, 3])
def test_a_scene_has_one_or_two_solids(count):
    with pytest.raises(SceneError, match=f"A scene has one or two solids, not {count}: add or remove one."):
        replace(TWO[0], solids=(TWO[0].solids * 2)[:count])


def test_the_last_solid_cannot_be_removed():
    scene = sampling.held_out_scenes(1, solids=1)[0]
    with pytest.raises(SceneError, match="one or two solids, not 0"):
        edits.remove(scene, scene.solids[0].shape)


def test_a_third_solid_cannot_be_added():
    with pytest.raises(SceneError, match="remove one before adding another"):
        edits.add(TWO[0], seed=0)
