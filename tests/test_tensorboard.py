"""What a training shows of itself: curves.png, and in TensorBoard pictures, histograms, settings and results."""

import io

import numpy as np
import pytest
from helpers import command, metrics_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from config import Config, get_config
from main import main
from training.cli import InputError
from viz import reports
from viz.figures import curves_figure, path_figure
from viz.files import to_image
from viz.record import load_glimpses
from viz.tensorboard import TensorBoardLog


def events_of(config: Config) -> EventAccumulator:
    return EventAccumulator(str(config.run_logs), size_guidance={"images": 0, "histograms": 0}).Reload()


def settings_of(events: EventAccumulator) -> dict:
    """The settings that TensorBoard's HPARAMS shows for a run."""
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    values = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_pictures_and_histograms_come_every_plot_freq_epochs_and_after_the_last(run):
    config = run("--epochs=5", "--plot_freq=2", "--use_tensorboard=True")
    events = events_of(config)
    assert [image.step for image in events.Images("glimpses")] == [2, 4, 5]
    tags = {f"location_{axis}/glimpse_{t}" for axis in "xy" for t in (1, 2, 3)}
    assert set(events.Tags()["histograms"]) == tags
    histogram = events.Histograms("location_y/glimpse_2")
    assert [event.step for event in histogram] == [2, 4, 5]
    assert histogram[0].histogram_value.num == config.data.batch_size  # a batch of validation images


def test_the_picture_is_of_the_glimpses_that_were_saved(run):
    config = run("--epochs=1", "--use_tensorboard=True")
    [logged] = events_of(config).Images("glimpses")
    drawn = to_image(path_figure(load_glimpses(config.run_plots / "glimpses_1.npz")))
    np.testing.assert_array_equal(Image.open(io.BytesIO(logged.encoded_image_string)), drawn)


def test_hparams_are_one_row_per_run_with_its_final_metrics(run):
    config = run("--epochs=2", "--use_tensorboard=True")
    events = events_of(config)
    last = metrics_of(config)[-1]
    settings = settings_of(events)
    assert (settings["hidden_size"], settings["epochs"], settings["lr_patience"]) == (32, 2, "None")
    assert "data_dir" not in settings and "run_name" not in settings
    assert events.Scalars("final/valid_acc")[-1].value == pytest.approx(last["valid"]["acc"], rel=1e-6)
    assert not any(path.is_dir() for path in config.run_logs.iterdir())  # a folder would be another run


def test_a_resumed_run_replaces_its_hparams(run):
    config = run("--epochs=2", "--use_tensorboard=True")
    run("--resume=True", "--epochs=3", "--use_tensorboard=True")
    events = events_of(config)
    assert settings_of(events)["epochs"] == 3
    assert [event.step for event in events.Scalars("final/epochs_done")] == [3]
    assert [event.step for event in events.Images("glimpses")] == [1, 2, 3]


def test_curves_are_drawn_from_every_epoch_of_a_run(run):
    config = run("--epochs=2")
    two = (config.run_plots / "curves.png").read_bytes()
    run("--resume=True", "--epochs=4")
    assert two.startswith(b"\x89PNG") and (config.run_plots / "curves.png").read_bytes() != two
    metrics = metrics_of(config)
    error, *_ = curves_figure(metrics).axes
    valid = next(line for line in error.lines if line.get_label() == "valid")
    assert valid.get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(valid.get_ydata(), [100 - line["valid"]["acc"] for line in metrics])


def test_a_stopped_training_has_curves_and_hparams(flags, monkeypatch):
    def stop(self, glimpses, epoch):
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardLog, "add_glimpses", stop)
    config = get_config([*flags, "--epochs=9", "--use_tensorboard=True"])
    with pytest.raises(KeyboardInterrupt):
        main(config)
    assert (config.run_plots / "curves.png").exists()
    assert [event.value for event in events_of(config).Scalars("final/epochs_done")] == [1]


def test_a_picture_that_cannot_be_written_stops_no_training(run, monkeypatch, capsys):
    def full(path, content):
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr(reports, "write_whole", full)
    config = run("--epochs=1")
    assert f"\n[!] cannot write {config.run_plots / 'curves.png'}: left out" in capsys.readouterr().out
    assert (config.run_dir / "best.pt").exists()


def test_a_report_of_ones_own_that_fails_stops_nothing_and_names_its_line(capsys):
    def mine(result):
        int(result)

    report = reports.harmless(mine)
    for _ in range(2):
        report("five")
    line = mine.__code__.co_firstlineno + 1
    [printed] = capsys.readouterr().out.splitlines()
    assert f"mine fails at {__file__}:{line} (ValueError: " in printed


def test_matplotlib_and_tensorboard_are_not_loaded_before_they_are_needed():
    """By what a training imports: the trainer, and what reports on it."""
    asked = "import sys, trainer, viz.reports; print([m for m in ('matplotlib', 'tensorboard') if m in sys.modules])"
    assert command("-c", asked).stdout == "[]\n"
