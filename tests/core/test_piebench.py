"""The data set's format and the table, without a server."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.piebench.dataset import decode_mask, encode_mask, make_toy_set, read_entries
from benchmarks.piebench.graphs import METHODS
from benchmarks.piebench.run import parse, summary


def test_masks_are_runs_over_the_rows_with_the_frame_set():
    mask = decode_mask([512 * 3 + 7, 2, 512 * 3 + 511, 514])
    rows, columns = np.nonzero(mask[1:-1, 1:-1])
    assert {(row + 1, column + 1) for row, column in zip(rows, columns, strict=True)} == {
        (3, 7), (3, 8), *((4, column) for column in range(1, 511)),
    }  # fmt: skip
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert edge.all()


def test_a_run_past_the_end_stops_there():
    assert decode_mask([512 * 511 - 2, 10_000]).shape == (512, 512)


def test_the_whole_picture_may_be_edited():
    assert decode_mask([0, 512 * 512]).all()


def test_encoding_is_the_inverse():
    mask = np.random.default_rng(0).integers(0, 2, (512, 512))
    decoded = decode_mask(encode_mask(mask))
    assert np.array_equal(decoded[1:-1, 1:-1], mask[1:-1, 1:-1])


def test_the_toy_set_has_the_data_sets_layout(tmp_path):
    make_toy_set(tmp_path, 4)
    entries = json.loads((tmp_path / "mapping_file.json").read_text())
    fields = {"image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask"}
    assert all(fields <= entry.keys() for entry in entries.values())
    read = read_entries(tmp_path)
    for item, entry in zip(read, entries.values(), strict=True):
        assert Image.open(tmp_path / "annotation_images" / item.path).size == (512, 512)
        marked = entry["original_prompt"].split("[")[1].split("]")[0]
        assert marked in item.source.split() and marked not in item.target.split()
        assert "[" not in item.source + item.target
        assert item.source != item.target
    assert [decode_mask(item.runs).all() for item in read] == [False, False, False, True]
    assert [item.kind for item in read_entries(tmp_path, "1")] == ["1", "1"]


def row(key: str, method: str, covered: bool = False, **metrics) -> dict:
    return {"key": key, "method": method, "covered": covered, "seconds": 2.0, "metrics": metrics, "networks": {"clip": "a clip"}}


def test_the_table_is_in_the_papers_units_and_leaves_out_what_is_undefined():
    rows = [
        row("1", "ddim", background_psnr=20.0, background_mse=0.01, clip_score=25.0),
        row("2", "ddim", background_psnr=30.0, background_mse=0.001, clip_score=26.0),
        row("3", "ddim", covered=True, background_psnr=None, background_mse=None, clip_score=30.0),
        row("1", "zerocon", background_psnr=22.0, background_mse=0.005, clip_score=24.0),
    ]
    table = summary(rows)
    assert "| method | background PSNR, dB ↑ | background MSE x10^4 ↓ | CLIP score ↑ |" in table
    assert "| ddim | 25.00 | 55.00 | 27.00 |" in table and "| zerocon | 22.00 | 50.00 | 24.00 |" in table
    assert "ddim: 3 images, 1 of them with a mask over everything" in table and "clip: a clip" in table
    assert "pix2pix-zero" not in table


def test_defaults_are_the_papers_for_a_checkpoint_and_none_for_the_toy_world(tmp_path, capsys):
    make_toy_set(tmp_path, 1)
    options = parse(["--images", str(tmp_path), "--checkpoint", "sd15.safetensors"])
    assert (options.structure, options.lpips, options.clip) == ("facebook/dino-vitb8", "squeeze", "openai/clip-vit-large-patch14")
    assert (options.side, options.methods) == (512, list(METHODS))
    toy = parse(["--checkpoint", "toy"])
    assert (toy.structure, toy.lpips, toy.clip, toy.side) == ("off", "off", "off", 64)
    with pytest.raises(SystemExit):
        parse(["--checkpoint", "sd15.safetensors"])
    assert "--images is needed" in capsys.readouterr().err
