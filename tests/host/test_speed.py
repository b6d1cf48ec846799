"""What the benchmark of speed counts and compares, on cases whose answer is known."""

import pytest
import torch
from zerocon_pack.benchmarks.speed import timing
from zerocon_pack.benchmarks.speed.memory import LiveBytes, MetaUnet, cfg_peak, gradient_pass
from zerocon_pack.benchmarks.speed.published import cds_iteration, pix2pix_zero_step
from zerocon_pack.benchmarks.speed.shapes import TOKENS, Passes, Shape
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE, patch_nce_loss

SHAPE = Shape("SD1.5", 32, 8)


def meta(count: int) -> torch.Tensor:
    return torch.empty(count, device="meta")


def test_live_bytes_are_those_of_tensors_that_somebody_holds():
    known = meta(1000)
    with LiveBytes([known]) as live:
        known.view(10, 100)  # not made here
        a = meta(100)
        view = a.view(10, 10)
        del a
        assert live.now == live.peak == 400
        b = view * 2
        del view
        assert (live.now, live.peak) == (400, 800)
        del b
        assert (live.now, live.peak) == (0, 800)


def test_live_bytes_see_what_autograd_keeps():
    x = meta(100).requires_grad_(True)
    with LiveBytes([x]) as live:
        y = x.sin().exp()  # keeps x, which is known, and its own result; sin's is dropped
        assert (live.now, live.peak) == (400, 800)
        torch.autograd.grad(y.sum(), x)
        del y
    assert live.now == 0


def test_checkpointing_and_fewer_samples_take_less_memory():
    unet = MetaUnet("SD1.5", 16)
    (kept, peak), (kept_checkpointed, peak_checkpointed) = (gradient_pass(unet, unet.both, c) for c in (False, True))
    assert kept_checkpointed < 0.5 * kept and kept < peak and peak_checkpointed < peak
    assert cfg_peak(unet) < kept


@pytest.fixture(scope="module")
def passes() -> Passes:
    return Passes(SHAPE.model(), SHAPE)


def embeddings(seed: int) -> torch.Tensor:
    return torch.randn(2, TOKENS, 768, generator=torch.Generator().manual_seed(seed))


def test_the_published_step_is_the_same_with_a_fused_kernel(passes):
    x, reference = SHAPE.latent() * 5, SHAPE.latent() * 4
    levels = torch.tensor(5.0), torch.tensor(4.0)
    explicit, fused, unguided = (
        pix2pix_zero_step(passes, x, reference, *levels, embeddings(0), embeddings(seed), cfg, fused)
        for seed, cfg, fused in ((1, 5.0, False), (1, 5.0, True), (0, 5.0, False))
    )
    assert torch.allclose(explicit, fused, atol=1e-4) and (explicit - unguided).abs().max() > 1e-2


def test_the_published_iteration_is_the_same_with_a_fused_kernel(passes):
    def iteration(fused: bool, w_loss: float) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        return cds_iteration(
            passes, SHAPE.latent() + 1, SHAPE.latent(), torch.randn(1, 4, 8, 8, generator=draw), torch.tensor(2.0),
            embeddings(0), embeddings(1), [], lambda pairs: w_loss * patch_nce_loss(pairs, PatchNCE(), draw), fused,
        )  # fmt: skip

    explicit, fused, dds = iteration(False, 1.0), iteration(True, 1.0), iteration(False, 0.0)
    assert torch.allclose(explicit, fused, atol=1e-5) and (explicit - dds).abs().max() > 1e-5


def test_ways_run_by_turns_after_a_first_time_that_is_not_counted(monkeypatch):
    now, done = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def way(name: str, seconds: float):
        def run() -> None:
            done.append(name)
            now[0] += seconds * (10 if done.count(name) == 1 else 1)

        return run

    measured = timing.timed("t", {"slow": way("slow", 4.0), "fast": way("fast", 1.0)}, 3, {"slow": 2})
    assert done == ["slow", "fast"] * 4
    assert measured.seconds == {"slow": [2.0] * 3, "fast": [1.0] * 3}
    head, _, slow, fast = timing.report(measured, "fast", ["slow"]).splitlines()
    assert head == "| t | seconds | in units of fast | speed against slow |"
    assert slow == "| slow | 2.0000 | 2.00 | 1.00x |" and fast == "| fast | 1.0000 | 1.00 | 2.00x |"


def test_a_ratio_is_taken_round_by_round():
    """The machine slows down fourfold in the second round, and the ratio stays."""
    measured = timing.Timing("t", {"a": [2.0, 8.0, 2.2], "b": [1.0, 4.0, 1.0]})
    assert timing.report(measured, "b", ["a"]).splitlines()[-1] == "| b | 1.0000 | 1.00 | 2.00x |"
