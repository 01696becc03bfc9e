"""Animations: boxes sit on the pixels that the retina read, files open, errors are clear."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import plot_glimpses
from config import InputError
from modules import Retina
from plot_glimpses import PlotConfig, patch_boxes
from runs import Glimpses, load_glimpses, save_glimpses


@pytest.fixture
def glimpses() -> Glimpses:
    random = np.random.default_rng(0)
    return Glimpses(
        images=random.random((3, 1, 20, 32), dtype=np.float32),
        labels=np.array([0, 1, 2]),
        predictions=np.array([0, 2, 2]),
        locations=random.uniform(-1, 1, (3, 4, 2)).astype(np.float32),
        classes=np.array(["zero", "one", "two"]),
        patch_size=5,
        num_patches=2,
        glimpse_scale=2,
    )


def test_a_box_covers_what_the_retina_read(glimpses):
    retina = Retina(5, 1, 1)
    boxes = patch_boxes(glimpses)
    assert boxes.shape == (3, 4, 2, 3)
    for t in range(4):
        read = retina(torch.from_numpy(glimpses.images), torch.from_numpy(glimpses.locations[:, t])).view(3, 5, 5)
        for i in range(3):
            left, top, width = boxes[i, t, 0].astype(int)
            assert width == 5
            inside = np.pad(glimpses.images[i, 0], 40)[top + 40 : top + 45, left + 40 : left + 45]
            np.testing.assert_array_equal(read[i].numpy(), inside)


def test_wider_boxes_hold_the_finer_ones(glimpses):
    boxes = patch_boxes(glimpses)
    fine, coarse = boxes[:, :, 0], boxes[:, :, 1]
    assert (coarse[..., :2] <= fine[..., :2]).all()
    assert (coarse[..., :2] + coarse[..., 2:] >= fine[..., :2] + fine[..., 2:]).all()


def test_the_drawn_box_lies_around_the_pixel(tmp_path, glimpses):
    """Rendered: a lone white pixel in a black image, looked at, is inside the coloured box."""
    image = np.zeros((1, 1, 30, 30), np.float32)
    image[0, 0, 8, 21] = 1
    place = np.array([[[2 * 21.5 / 30 - 1, 2 * 8.5 / 30 - 1]]], np.float32)
    drawn = glimpses._replace(
        images=image, labels=np.array([1]), predictions=np.array([1]), locations=place, patch_size=9, num_patches=1
    )
    plot_glimpses.animate(drawn, 1, 2.0, tmp_path / "a.gif")
    frame = np.asarray(Image.open(tmp_path / "a.gif").convert("RGB")).astype(int)
    orange = np.argwhere((abs(frame - [230, 159, 0]) < 60).all(axis=2))
    white = np.argwhere((frame > 240).all(axis=2) & (np.indices(frame.shape[:2])[0] > frame.shape[0] * 0.22))
    middle = orange.min(axis=0) + np.ptp(orange, axis=0) / 2
    inside = (white > orange.min(axis=0)).all(axis=1) & (white < orange.max(axis=0)).all(axis=1)
    lone = white[inside].mean(axis=0)
    np.testing.assert_allclose(lone, middle, atol=2.5)
    height, width = frame.shape[:2]
    assert middle[0] < height * 0.6 and middle[1] > width * 0.6  # above the middle, right of it: x and y not swapped


def test_a_run_animates_from_its_glimpses_and_its_checkpoint(run):
    config = run("--epochs=2")
    saved = plot_glimpses.main(PlotConfig(plot_dir=str(config.run_plots), epoch=1, num_images=4))
    assert saved == config.run_plots / "glimpses_1.gif"
    tested = plot_glimpses.main(PlotConfig(checkpoint=str(config.run_dir / "best.pt"), num_images=4))
    for path in (saved, tested):
        picture = Image.open(path)
        assert picture.format == "GIF" and picture.n_frames >= config.num_glimpses
    latest = plot_glimpses.find_glimpses(config.run_plots, None)
    assert latest.name == "glimpses_2.npz"


def test_saved_glimpses_open_without_pickle(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    loaded = load_glimpses(tmp_path / "glimpses_1.npz")
    np.testing.assert_array_equal(loaded.locations, glimpses.locations)
    np.savez(tmp_path / "glimpses_2.npz", **{**glimpses._asdict(), "labels": np.array([print], dtype=object)})
    for path in (tmp_path / "glimpses_2.npz", tmp_path / "missing.npz"):
        with pytest.raises(InputError, match="does not hold saved glimpses"):
            load_glimpses(path)


def test_mp4_needs_ffmpeg_and_says_so(tmp_path, glimpses, monkeypatch):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="ffmpeg, which is not installed"):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "a.mp4")))
    assert not (tmp_path / "a.mp4").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another --out="):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "file" / "a.gif")))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_mp4_is_written_where_ffmpeg_is(tmp_path, glimpses):
    plot_glimpses.animate(glimpses, 3, 2.0, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"


def test_an_epoch_that_was_not_saved_names_those_that_were(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_3.npz", glimpses)
    with pytest.raises(InputError, match=r"epoch=2 is not among those saved.*: 3$"):
        plot_glimpses.find_glimpses(tmp_path, 2)


@pytest.mark.parametrize("fields", [{"out": "a.png"}, {"num_images": 0}, {"fps": 0.0}])
def test_a_setting_that_is_not_allowed_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        PlotConfig(**fields)
