"""Averages over a test set: heat maps count every glimpse, and early answers are what a naive count gives."""

import itertools
import json

import numpy as np
import pytest
import torch

import plot_glimpses
from averages import average, cells, heat_map_figure
from glimpses import Source, look_at_chosen, open_checkpoint
from plot_glimpses import PlotConfig


@pytest.fixture
def source(run) -> Source:
    return open_checkpoint(run("--epochs=2").run_dir / "best.pt")


def test_heat_maps_count_every_glimpse(source):
    averages = average(source)
    labels = source.loader.examples.labels.numpy()
    steps = source.model.num_glimpses
    assert averages.num_images == len(labels)
    assert (averages.by_glimpse.sum(axis=(1, 2)) == len(labels)).all() and len(averages.by_glimpse) == steps
    np.testing.assert_array_equal(averages.by_class.sum(axis=(1, 2)), (steps - 1) * np.bincount(labels, minlength=10))
    np.testing.assert_array_equal(averages.by_class.sum(axis=0), averages.by_glimpse[1:].sum(axis=0))


def test_averages_equal_a_naive_count(source):
    averages = average(source)
    glimpses = look_at_chosen(source, indices=[], label="", errors=False, count=10_000)
    counts = np.zeros_like(averages.by_glimpse)
    for path in glimpses.locations:
        for t, (x, y) in enumerate(path):
            counts[t, min(int((y + 1) / 2 * 28), 27), min(int((x + 1) / 2 * 28), 27)] += 1
    np.testing.assert_array_equal(averages.by_glimpse, counts)
    right = [(glimpses.answers[:, t] == glimpses.labels).sum() for t in range(len(averages.correct))]
    np.testing.assert_array_equal(averages.correct, right)
    np.testing.assert_allclose(averages.mean_image, glimpses.images.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(averages.class_means[4], glimpses.images[glimpses.labels == 4].mean(axis=0), atol=1e-5)


def test_the_border_belongs_to_the_last_cell_and_x_counts_columns():
    row, column = cells(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.99, -0.99], [0.0, 0.0]]), rows=4, columns=6)
    assert row.tolist() == [0, 3, 0, 2] and column.tolist() == [0, 5, 5, 3]


def test_the_last_accuracy_is_the_tests(source, run):
    run("--is_train=False")
    test = json.loads((source.config.run_dir / "test.json").read_text())["tests"]["M=1"]
    assert average(source).correct[-1] == test["correct"]


def test_a_heat_map_shows_its_counts_as_they_lie(source):
    averages = average(source)
    shown = [ax.images[0].get_array() for ax in heat_map_figure(averages).axes]
    maps = [array.filled(0) for array in shown if np.ma.isMaskedArray(array) and array.ndim == 2]
    np.testing.assert_array_equal(maps, [*averages.by_glimpse, *averages.by_class])


def test_many_glimpses_have_maps_side_by_side(source, monkeypatch):
    monkeypatch.setattr("averages.WIDTH", 1.0)  # inches, as much too narrow for 20 maps as 9 are for 180
    averages = average(source)
    many = averages._replace(by_glimpse=np.ones((20, *averages.by_glimpse.shape[1:])))
    boxes = [ax.get_position() for ax in heat_map_figure(many).axes[:21]]
    assert all(0 <= a.x0 < a.x1 <= b.x0 < b.x1 <= 1 for a, b in itertools.pairwise(boxes))


def test_a_command_writes_both_pictures_into_the_runs_plots(source, capsys):
    checkpoint = source.config.run_dir / "best.pt"
    paths = plot_glimpses.main(PlotConfig(checkpoint=str(checkpoint), averages=True))
    assert paths == [source.config.run_plots / f"best_{name}.png" for name in ("heat_maps", "accuracy")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    accuracy = 100 * average(source).correct[-1] / source.loader.num_images
    assert f"{accuracy:.2f}%\n" in capsys.readouterr().out


@pytest.mark.parametrize("first_location, chosen", [("random", 0), ("centre", 0), ("learned", 1)])
def test_a_single_glimpse_has_averages_too(first_location, chosen, run):
    config = run("--epochs=1", "--num_glimpses=1", f"--first_location={first_location}")
    source = open_checkpoint(config.run_dir / "best.pt")
    averages = average(source)
    assert averages.by_glimpse.sum() == averages.num_images
    assert averages.by_class.sum() == chosen * averages.num_images
    heat_map_figure(averages)
