"""The command that draws: selections are what they say, files are whole, errors are clear, runs may be in progress."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, make_glimpses
from PIL import Image

import plot_glimpses
from config import Config, make_config
from main import main
from model import RecurrentAttention
from plot_glimpses import PlotConfig
from tools.export import Export
from tools.export import main as export
from training.checkpoint import load_checkpoint
from training.cli import InputError
from viz.figures import glimpse_frames
from viz.record import load_glimpses, look_at_chosen, open_checkpoint, save_glimpses


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Config:
    """A run of two epochs, which gets some digits right and some wrong."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("ckpt_dir", "logs_dir", "plot_dir")}
    small = {"hidden_size": 32, "num_glimpses": 3, "epochs": 2, "plot_freq": 1}
    config = make_config(task="digits", use_gpu=False, **small, **folders)
    main(config)
    return config


def test_a_run_animates_from_its_glimpses_and_its_checkpoint(trained, tmp_path, monkeypatch):
    assert plot_glimpses.find_glimpses(trained.run_plots, None).name == "glimpses_2.npz"
    [saved] = plot_glimpses.main(PlotConfig(plot_dir=str(trained.run_plots), epoch=1, num_images=2))
    assert saved == trained.run_plots / "glimpses_1.gif"
    monkeypatch.chdir(tmp_path)
    [tested] = plot_glimpses.main(PlotConfig(checkpoint=str(trained.run_dir / "best.pt"), num_images=2))
    assert tested == trained.run_plots / "best.gif"
    for path in (saved, tested):
        picture = Image.open(path)
        assert picture.format == "GIF" and picture.n_frames == trained.model.num_glimpses


def test_pictures_of_a_checkpoint_that_lies_elsewhere_go_to_a_folder_of_its_name(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.run_dir / "best.pt", tmp_path / "mine.pt")
    [path] = plot_glimpses.main(PlotConfig(checkpoint="mine.pt", num_images=1))
    assert path == Path("plots/mine/mine.gif") and path.exists()


def test_a_run_copied_from_elsewhere_keeps_to_plots_of_its_own(trained, tmp_path, monkeypatch):
    """Its checkpoint names plots that are another run's, or are not there."""
    monkeypatch.chdir(tmp_path)
    for place in ("first", "second"):
        (tmp_path / place / trained.name).mkdir(parents=True)
        for name in ("best.pt", "params.json"):
            shutil.copy(trained.run_dir / name, tmp_path / place / trained.name)
    [path] = plot_glimpses.main(PlotConfig(checkpoint=f"first/{trained.name}/best.pt", num_images=1))
    assert path == Path("plots") / trained.name / "best.gif"
    with pytest.raises(InputError, match=r"is that of the run in .*first.*: choose another --plot_dir="):
        plot_glimpses.main(PlotConfig(checkpoint=f"second/{trained.name}/best.pt", num_images=1))


def test_pictures_of_a_shipped_model_go_to_a_folder_of_its_name(trained, tmp_path, monkeypatch):
    [shipped] = export(Export(str(trained.run_dir), str(tmp_path / "models")))
    monkeypatch.chdir(tmp_path)
    [path] = plot_glimpses.main(PlotConfig(checkpoint=str(shipped), num_images=1))
    assert path == Path("plots/digits/digits.gif") and Image.open(path).n_frames == trained.model.num_glimpses


def test_a_sheet_shows_every_glimpse(trained):
    out = trained.run_plots / "sheet.png"
    plot_glimpses.main(PlotConfig(plot_dir=str(trained.run_plots), num_images=2, out=str(out)))
    frames = list(glimpse_frames(load_glimpses(trained.run_plots / "glimpses_2.npz").take(slice(2))))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.concatenate([np.asarray(f) for f in frames]))


def test_selections_choose_what_they_say(trained):
    source = open_checkpoint(trained.run_dir / "best.pt")
    labels = source.loader.examples.labels.numpy()
    everything = {"indices": [], "label": "", "errors": False, "count": 10_000}
    whole = look_at_chosen(source, **everything)
    assert len(whole.labels) == len(labels) and 0 < whole.wrong.sum() < len(labels)

    by_index = look_at_chosen(source, **{**everything, "indices": [5, 0, 17], "count": 1})
    np.testing.assert_array_equal(by_index.images, whole.images[[5, 0, 17]])
    np.testing.assert_allclose(by_index.locations, whole.locations[[5, 0, 17]], atol=1e-5)
    by_class = look_at_chosen(source, **{**everything, "label": "3", "count": 4})
    np.testing.assert_array_equal(by_class.images, whole.images[labels == 3][:4])
    wrong = look_at_chosen(source, **{**everything, "errors": True, "count": 5})
    assert wrong.wrong.all()
    np.testing.assert_array_equal(wrong.images, whole.images[whole.wrong][:5])
    both = look_at_chosen(source, **{**everything, "errors": True, "label": "8"})
    assert (both.labels == 8).all() and both.wrong.all() and len(both.labels) == (whole.wrong & (labels == 8)).sum()


def test_errors_are_those_that_the_test_counts(trained):
    main(trained.replace(is_train=False))
    test = json.loads((trained.run_dir / "test.json").read_text())["tests"]["M=1"]
    source = open_checkpoint(trained.run_dir / "best.pt")
    wrong = look_at_chosen(source, indices=[], label="", errors=True, count=10_000)
    assert len(wrong.labels) == test["images"] - test["correct"]


def test_probabilities_sum_to_one_and_the_last_are_the_rollouts(trained):
    source = open_checkpoint(trained.run_dir / "best.pt")
    glimpses = look_at_chosen(source, indices=[], label="", errors=False, count=20)
    np.testing.assert_allclose(glimpses.probabilities.sum(axis=-1), 1, atol=1e-5)
    images = next(iter(source.loader)).images[:20]
    with torch.no_grad():
        rollout = source.model(images, source.first_locations[:20])
        np.testing.assert_allclose(glimpses.probabilities[:, -1], rollout.log_probs.exp(), atol=1e-5)
        # A model that looks fewer times predicts what was predicted early.
        source.model.num_glimpses = 2
        np.testing.assert_allclose(
            glimpses.probabilities[:, 1], source.model(images, source.first_locations[:20]).log_probs.exp(), atol=1e-5
        )


def test_patches_are_what_the_model_received(trained):
    source = open_checkpoint(trained.run_dir / "best.pt")
    received = []
    source.model.sensor.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    glimpses = look_at_chosen(source, indices=[], label="", errors=False, count=6)
    for t, glimpse in enumerate(received):
        patches = source.model.denormalize(glimpse.view(6, 1, 1, 8, 8))
        np.testing.assert_allclose(glimpses.patches[:, t], patches, atol=1e-6)
    assert len(received) == trained.model.num_glimpses


def test_a_loaded_model_normalises_as_it_was_trained(trained):
    loader = open_checkpoint(trained.run_dir / "best.pt").loader
    model = RecurrentAttention.load(trained.run_dir / "best.pt")
    images = loader.examples.images[:20] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (loader.spec.mean, loader.spec.std))
    torch.testing.assert_close(model.normalize(images), (images - mean) / std)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indices": "9"}, "indices=9 is not among the 9 images"),
        ({"label": "ten"}, "label=ten is not among the classes: 0, 1"),
        ({"indices": "0", "label": "0"}, "no image of class 0"),
        ({"errors": True}, "right about all of these images"),
    ],
)
def test_a_selection_of_nothing_says_so(fields, message, tmp_path):
    images = np.zeros((9, 1, 8, 8), np.float32)
    right = make_glimpses(
        images, np.zeros((9, 2, 2), np.float32), labels=np.ones(9, int), classes=np.array(["0", "1", "2"])
    )
    save_glimpses(tmp_path / "glimpses_1.npz", right._replace(probabilities=np.eye(3)[np.ones((9, 2), int)]))
    with pytest.raises(InputError, match=message):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), **fields))
    assert [path.name for path in tmp_path.iterdir()] == ["glimpses_1.npz"]


def test_other_files_next_to_the_saved_glimpses_are_ignored(tmp_path, glimpses):
    for name in ("glimpses_1.npz", "glimpses_1 (copy).npz", "glimpses_best.npz"):
        save_glimpses(tmp_path / name, glimpses)
    assert plot_glimpses.find_glimpses(tmp_path, None) == tmp_path / "glimpses_1.npz"


def test_saved_glimpses_open_without_pickle(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    loaded = load_glimpses(tmp_path / "glimpses_1.npz")
    for saved, read in zip(glimpses, loaded, strict=True):
        np.testing.assert_array_equal(saved, read)
    np.savez(tmp_path / "glimpses_2.npz", **{**glimpses._asdict(), "labels": np.array([print], dtype=object)})
    for path in (tmp_path / "glimpses_2.npz", tmp_path / "missing.npz"):
        with pytest.raises(InputError, match="does not hold saved glimpses"):
            load_glimpses(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", np.array([0, 1, 3])),
        ("labels", np.array([0, 1])),
        ("images", np.zeros((3, 3, 20, 32))),
        ("locations", np.full((3, 4, 2), np.nan)),
        ("probabilities", np.zeros((3, 4, 2))),
        ("patches", np.zeros(3)),
        ("glimpse_scale", np.zeros(2)),
        ("classes", np.array("zero")),
    ],
)
def test_saved_glimpses_that_contradict_themselves_are_rejected(field, value, tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses._replace(**{field: value}))
    with pytest.raises(InputError, match="does not hold saved glimpses"):
        load_glimpses(tmp_path / "glimpses_1.npz")


def test_an_animation_needs_no_ffmpeg_but_a_film_does_and_says_so(tmp_path, glimpses, monkeypatch):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    monkeypatch.setenv("PATH", str(tmp_path))
    plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "a.gif")))
    assert Image.open(tmp_path / "a.gif").n_frames == 4
    with pytest.raises(InputError, match="ffmpeg, which is not installed"):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "a.mp4")))
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_a_film_is_written_if_ffmpeg_is_installed(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "a.mp4"), num_images=1))
    ask = ["ffmpeg", "-i", str(tmp_path / "a.mp4"), "-f", "null", "-"]
    printed = subprocess.run(ask, capture_output=True, text=True).stderr
    assert "yuv420p" in printed and "frame=    6" in printed  # 4 glimpses, the last for three frames


def test_a_failing_write_leaves_the_old_picture(tmp_path, glimpses, monkeypatch):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    (tmp_path / "a.gif").write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left.*choose another"):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "a.gif"), num_images=1))
    assert (tmp_path / "a.gif").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "glimpses_1.npz"]


def test_a_place_that_cannot_be_written_is_named(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_1.npz", glimpses)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another"):
        plot_glimpses.main(PlotConfig(plot_dir=str(tmp_path), out=str(tmp_path / "file" / "a.gif"), num_images=1))


@pytest.mark.slow
def test_a_run_in_progress_is_drawn_without_a_display(flags, tmp_path):
    """The real command, while the real training writes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    training = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *flags, "--epochs=100000", "--compile=False", "--run_name=live"],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    try:
        run_dir, plots = tmp_path / "ckpt_dir" / "live", tmp_path / "plot_dir" / "live"
        for source in (f"--plot_dir={plots}", f"--checkpoint={run_dir / 'last.pt'}"):
            deadline = time.time() + 300
            while not (run_dir / "last.pt").exists() and time.time() < deadline:
                time.sleep(0.1)
            out = tmp_path / "live.gif"
            command = [sys.executable, ROOT / "plot_glimpses.py", source, f"--out={out}", "--num_images=1"]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            assert training.poll() is None
            assert Image.open(out).n_frames == 3
            out.unlink()
        for _ in range(50):
            load_glimpses(plot_glimpses.find_glimpses(plots, None))
            load_checkpoint(run_dir / "last.pt")
        assert training.poll() is None
    finally:
        training.kill()
        training.wait()


def test_an_epoch_that_was_not_saved_names_those_that_were(tmp_path, glimpses):
    save_glimpses(tmp_path / "glimpses_3.npz", glimpses)
    with pytest.raises(InputError, match=r"epoch=2 is not among those saved.*: 3$"):
        plot_glimpses.find_glimpses(tmp_path, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"out": "a.jpg"},
        {"num_images": 0},
        {"fps": 0.0},
        {"fps": 0.004},
        {"indices": "1,x"},
        {"epoch": 3, "checkpoint": "best.pt"},
        {"averages": True},
        {"errors": True, "averages": True, "checkpoint": "best.pt"},
    ],
)
def test_a_setting_that_is_not_allowed_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        PlotConfig(**fields)
