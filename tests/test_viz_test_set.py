"""A whole test set: heat maps count every glimpse, and early predictions are what a naive count gives."""

import itertools
import json

import numpy as np
import pytest
import torch

import plot_glimpses
from config import Config, make_config
from main import main
from plot_glimpses import PlotConfig
from viz.files import png
from viz.record import Source, look_at_chosen, open_checkpoint
from viz.test_set import cells, confusion_figure, heat_map_figure, summarise


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Config:
    """A run of two epochs."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("ckpt_dir", "logs_dir", "plot_dir")}
    small = {"hidden_size": 32, "num_glimpses": 3, "epochs": 2, "plot_freq": 2}
    config = make_config(task="digits", use_gpu=False, **small, **folders)
    main(config)
    return config


@pytest.fixture(scope="module")
def source(trained) -> Source:
    return open_checkpoint(trained.run_dir / "best.pt")


def test_heat_maps_count_every_glimpse(source):
    summary = summarise(source)
    labels = source.loader.examples.labels.numpy()
    steps = source.model.num_glimpses
    assert summary.num_images == len(labels)
    assert (summary.by_glimpse.sum(axis=(1, 2)) == len(labels)).all() and len(summary.by_glimpse) == steps
    np.testing.assert_array_equal(summary.by_class.sum(axis=(1, 2)), (steps - 1) * np.bincount(labels, minlength=10))
    np.testing.assert_array_equal(summary.by_class.sum(axis=0), summary.by_glimpse[1:].sum(axis=0))


def test_a_summary_equals_a_naive_count(source):
    summary = summarise(source)
    glimpses = look_at_chosen(source, indices=[], label="", errors=False, count=10_000)
    counts = np.zeros_like(summary.by_glimpse)
    for path in glimpses.locations:
        for t, (x, y) in enumerate(path):
            counts[t, min(int((y + 1) / 2 * 28), 27), min(int((x + 1) / 2 * 28), 27)] += 1
    np.testing.assert_array_equal(summary.by_glimpse, counts)
    right = [(glimpses.predictions[:, t] == glimpses.labels).sum() for t in range(len(summary.correct))]
    np.testing.assert_array_equal(summary.correct, right)
    np.testing.assert_allclose(summary.mean_image, glimpses.images.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(summary.class_means[4], glimpses.images[glimpses.labels == 4].mean(axis=0), atol=1e-5)


def test_the_border_belongs_to_the_last_cell_and_x_counts_columns():
    row, column = cells(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.99, -0.99], [0.0, 0.0]]), rows=4, columns=6)
    assert row.tolist() == [0, 3, 0, 2] and column.tolist() == [0, 5, 5, 3]


def test_the_last_accuracy_is_the_tests(trained, source):
    main(trained.replace(is_train=False))
    test = json.loads((trained.run_dir / "test.json").read_text())["tests"]["M=1"]
    assert summarise(source).correct[-1] == test["correct"]


def test_a_heat_map_shows_its_counts_as_they_lie(source):
    summary = summarise(source)
    shown = [ax.images[0].get_array() for ax in heat_map_figure(summary).axes]
    maps = [array.filled(0) for array in shown if np.ma.isMaskedArray(array) and array.ndim == 2]
    np.testing.assert_array_equal(maps, [*summary.by_glimpse, *summary.by_class])


def test_the_confusion_matrix_is_the_tests_and_its_picture_shows_it(trained, source):
    main(trained.replace(is_train=False))
    test = json.loads((trained.run_dir / "test.json").read_text())["tests"]["M=1"]
    summary = summarise(source)
    assert summary.confusion.tolist() == test["confusion"]
    [ax] = confusion_figure(summary).axes
    shown = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in ax.texts}
    assert shown == {(row, column): str(count) for (row, column), count in np.ndenumerate(summary.confusion) if count}


@pytest.mark.parametrize("count", [2, 30, 300])
def test_a_confusion_matrix_of_any_size_is_drawn(source, count):
    confusion = np.zeros((count, count), int)  # and classes without images
    summary = summarise(source)._replace(confusion=confusion, classes=[f"a rather long name {k}" for k in range(count)])
    assert png(confusion_figure(summary)).startswith(b"\x89PNG")


def test_many_glimpses_have_maps_side_by_side(source, monkeypatch):
    monkeypatch.setattr("viz.test_set.WIDTH", 1.0)  # inches, as much too narrow for 20 maps as 9 are for 180
    summary = summarise(source)
    many = summary._replace(by_glimpse=np.ones((20, *summary.by_glimpse.shape[1:])))
    boxes = [ax.get_position() for ax in heat_map_figure(many).axes[:21]]
    assert all(0 <= a.x0 < a.x1 <= b.x0 < b.x1 <= 1 for a, b in itertools.pairwise(boxes))


def test_a_command_writes_all_pictures_into_the_runs_plots(trained, source, capsys):
    checkpoint = trained.run_dir / "best.pt"
    paths = plot_glimpses.main(PlotConfig(checkpoint=str(checkpoint), averages=True, plot_dir=str(trained.run_plots)))
    assert paths == [trained.run_plots / f"best_{name}.png" for name in ("heat_maps", "accuracy", "confusion")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    accuracy = 100 * summarise(source).correct[-1] / source.loader.num_images
    assert f"{accuracy:.2f}%\n" in capsys.readouterr().out


@pytest.mark.parametrize("first_location, chosen", [("random", 0), ("centre", 0), ("learned", 1)])
def test_a_single_glimpse_has_a_summary_too(first_location, chosen, run):
    config = run("--epochs=1", "--num_glimpses=1", f"--first_location={first_location}")
    source = open_checkpoint(config.run_dir / "best.pt")
    summary = summarise(source)
    assert summary.by_glimpse.sum() == summary.num_images
    assert summary.by_class.sum() == chosen * summary.num_images
    heat_map_figure(summary)
