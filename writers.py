"""What a training shows of itself: TensorBoard's log, and at its end the curves of its metrics.

with open_writer(config, epoch=0, is_main=True) as writer:
    writer.add_scalar("acc/valid", 97.5, 1)

tensorboard --logdir=./logs
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

from config import FREE, Config, InputError
from glimpses import NUM_SAVED, Glimpses
from runs import read_metrics, write_whole


class NullWriter:
    """Stands in for `TensorBoardWriter` where nothing is logged."""

    def add_scalar(self, name: str, value: float, epoch: int):
        pass

    def add_glimpses(self, glimpses: Glimpses, epoch: int):
        pass

    def add_result(self, config: Config, metrics: list[dict]):
        pass

    def close(self):
        pass


class TensorBoardWriter:
    """TensorBoard's writer, which drops what an earlier process logged after this epoch."""

    def __init__(self, config: Config, epoch: int):
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.folder = config.run_logs
        self.writer = SummaryWriter(str(self.folder), purge_step=epoch + 1)
        self.add_scalar = self.writer.add_scalar
        self.close = self.writer.close

    def add_glimpses(self, glimpses: Glimpses, epoch: int):
        """A picture of the first paths, and for each glimpse how the locations are spread."""
        from pictures import path_figure

        self.writer.add_figure("glimpses", path_figure(glimpses.take(slice(NUM_SAVED))), epoch)
        for step in range(glimpses.locations.shape[1]):
            for axis, name in enumerate("xy"):
                values = glimpses.locations[:, step, axis]
                self.writer.add_histogram(f"location_{name}/glimpse_{step + 1}", values, epoch)

    def add_result(self, config: Config, metrics: list[dict]):
        """The settings beside what they led to, for the tab HPARAMS.

        TensorBoard shows the first that a run logged of these: a file of their own, which a resumed run replaces, lets
        it show the latest.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        settings = {name: value for name, value in asdict(config).items() if name not in FREE}
        settings = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()
        }
        last = metrics[-1]
        result = {
            "final/best_valid_acc": max(line["valid"]["acc"] for line in metrics),
            "final/valid_acc": last["valid"]["acc"],
            "final/valid_loss": last["valid"]["loss"],
            "final/train_acc": last["train"]["acc"],
            "final/epochs_done": last["epoch"],
        }
        self.writer.flush()
        for earlier in self.folder.glob("*.hparams"):
            earlier.unlink()
        with SummaryWriter(str(self.folder), filename_suffix=".hparams") as writer:
            for summary in hparams(settings, result):
                writer.file_writer.add_summary(summary)
            for name, value in result.items():
                writer.add_scalar(name, value, last["epoch"])


@contextlib.contextmanager
def open_writer(config: Config, epoch: int, is_main: bool) -> Iterator[NullWriter | TensorBoardWriter]:
    """What a training logs to. However it ends, curves.png and TensorBoard's HPARAMS then tell how far it came.

    Args:
        epoch: epochs done.
        is_main: whether this process is the one of several that writes.
    """
    if not is_main:
        yield NullWriter()
        return
    writer = TensorBoardWriter(config, epoch) if config.use_tensorboard else NullWriter()
    try:
        yield writer
    finally:
        with contextlib.closing(writer):
            save_result(config, writer)


def save_result(config: Config, writer: NullWriter | TensorBoardWriter):
    """Draws and logs what a training came to; what keeps it from that is told, and stops nothing."""
    try:
        metrics = read_metrics(config.run_dir / "metrics.jsonl")
        if metrics:
            from pictures import curves_figure, png

            write_whole(config.run_plots / "curves.png", png(curves_figure(metrics)))
            writer.add_result(config, metrics)
    except (InputError, OSError) as error:
        print(f"[!] {error}")
