"""The tabletop's autoencoder and classifier, on random and on shipped weights."""

from dataclasses import replace

import pytest
import torch

from zerocon_core.tabletop import autoencoder, classifier, edits, render, sampling, weights
from zerocon_core.tabletop.scene import middles

SCENES = sampling.held_out_scenes(12)
IMAGES = torch.stack([torch.from_numpy(render.render(s)) for s in SCENES]).movedim(-1, 1) * 2 - 1


@pytest.fixture(scope="module")
def model() -> autoencoder.PatchAutoencoder:
    """Components of these pictures and a refinement that was never trained."""
    torch.manual_seed(0)
    model = autoencoder.PatchAutoencoder()
    for buffer, value in zip(model.buffers(), autoencoder.principal_components(IMAGES), strict=True):
        buffer.copy_(value)
    return model.requires_grad_(False)


def test_latents_are_uncorrelated_and_of_unit_variance_together(model):
    latents = model.encode(IMAGES)
    assert latents.shape == (12, 16, 16, 16)
    covariance = torch.cov(latents.movedim(1, 0).flatten(1))
    assert torch.allclose(covariance, covariance.diag().diag(), atol=2e-3)
    assert covariance.diag().mean() == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(covariance.diag(), model.scales**2 / (model.scales**2).mean(), atol=2e-3)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-3


def test_a_latent_decoded_and_encoded_is_the_same(model):
    latents = torch.randn(2, 16, 4, 6)
    assert torch.allclose(model.encode(model.decode_linear(latents)), latents, atol=1e-3)


def test_a_latent_holds_its_patch_and_nothing_else(model):
    other = IMAGES.clone()
    other[..., 40:48, 64:72] = torch.rand(8, 8)
    changed = (model.encode(other) - model.encode(IMAGES)).abs().amax(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[5, 8]]


def test_an_untrained_refinement_changes_nothing(model):
    latents = model.encode(IMAGES)
    assert torch.equal(model.decode(latents), model.decode_linear(latents))


def test_the_refinement_looks_at_the_neighbourhood_only(model):
    with torch.no_grad():
        trained = autoencoder.Refinement()
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        latents = torch.zeros(1, 16, 32, 32)
        touched = latents.clone()
        touched[..., 16, 16] = 1.0
        changed = (trained(touched) - trained(latents)).abs().amax(dim=(0, 1)).nonzero()
    assert changed.min() >= 8 * (16 - 12) and changed.max() < 8 * (17 + 12)


def test_no_component_count_is_lost():
    mean, components, scales = autoencoder.principal_components(IMAGES)
    assert mean.shape == (192,) and components.shape == (16, 192) and scales.shape == (16,)
    assert torch.allclose(components @ components.T, torch.eye(16), atol=1e-5)
    assert (scales.diff() <= 0).all()


def seen_as(scene, **changes) -> classifier.SceneSeen:
    """A scene as a faultless classifier would see it, its first solid with `changes`."""
    x, y = middles(scene.solids, scene.camera)
    solids = [
        classifier.SolidSeen(s.colour, s.shape, s.material, *place)
        for s, *place in zip(scene.solids, x.tolist(), y.tolist(), strict=True)
    ]
    solids[0] = replace(solids[0], **changes)
    return classifier.SceneSeen(tuple(sorted(solids, key=lambda s: s.x)), scene.floor.pattern)


def test_agreement_counts_each_solid_with_its_own():
    scene = sampling.held_out_scenes(1, solids=2)[0]
    assert classifier.agreement(seen_as(scene), scene) == {"colour": 1, "shape": 1, "material": 1, "floor": 1}
    wrong = next(c for c in ("red", "blue", "green") if c not in {s.colour for s in scene.solids})
    assert classifier.agreement(seen_as(scene, colour=wrong), scene)["colour"] == 0.5
    lost = classifier.SceneSeen(seen_as(scene).solids[:1], scene.floor.pattern)
    assert classifier.agreement(lost, scene) == {"colour": 0.5, "shape": 0.5, "material": 0.5, "floor": 1}
    other = edits.change(scene, "floor", next(p for p in ("plain", "dotted") if p != scene.floor.pattern))
    assert classifier.agreement(seen_as(scene), other)["floor"] == 0


def test_an_untrained_classifier_answers_at_any_size():
    torch.manual_seed(0)
    model = classifier.Classifier().eval()
    for size in (64, 128, 200):
        (seen,) = classifier.classify(torch.rand(1, size, size, 3), model)
        assert len(seen.solids) <= classifier.MOST


@pytest.mark.parametrize("name", ["autoencoder", "classifier"])
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_an_unusable_file_is_named_with_its_remedy(monkeypatch, tmp_path, name, state):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    if state == "damaged":
        (tmp_path / f"{name}.safetensors").write_bytes(b"nonsense")
    load = {"autoencoder": autoencoder.load_autoencoder, "classifier": classifier.load_classifier}[name]
    with pytest.raises(weights.WeightsError, match=f"{name}.safetensors is {state}: restore it with `git checkout"):
        load()


def test_the_shipped_autoencoder_returns_pictures_and_their_colours():
    with torch.no_grad():
        shipped = autoencoder.load_autoencoder()
        back = shipped.decode(shipped.encode(IMAGES)).clamp(-1, 1)
    error = ((back - IMAGES) / 2).square().mean(dim=(1, 2, 3))
    assert (-10 * error.log10()).mean() > 37
    assert (back - IMAGES).mean(dim=(2, 3)).abs().max() * 255 / 2 < 1.0
