"""What a model reads in pictures of your own, as plot_glimpses.py prints it.

trained = open_reader("models/mnist.pt")
for answer in read_files(["digit.png"], trained):
    print(answer.file, answer.best(3))
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from config import Config
from images.batches import Batch, DataSpec
from images.listing import is_hidden
from images.one_image import DIGIT, ENDINGS_OF_ONE, MNIST, Fit, Invert, Kind, Seen, fit_picture, read_picture
from model import draw_first_locations
from training.cli import InputError
from training.distributed import ALONE
from training.fixed_policies import fixed_locations
from utils import Stream, make_generator
from viz.record import Glimpses, Trained, look, open_model

AT_ONCE = 64  # pictures
RUNNERS_UP = 2
BOXES = {"mnist": MNIST.box, "digits": DIGIT}  # pixels of a digit's longer side; scikit-learn's fill their images


class Answer(NamedTuple):
    """What a model reads in a file."""

    file: str
    notes: list[str]  # what was done to the picture
    glimpses: Glimpses | None  # of this image alone; None if it could not be read
    error: str  # why

    def best(self, count: int) -> list[tuple[str, float]]:
        """The classes of the highest probabilities, and these."""
        probabilities = self.glimpses.probabilities[0, -1]
        return [(str(self.glimpses.classes[k]), float(probabilities[k])) for k in (-probabilities).argsort()[:count]]


def open_reader(path: str | Path) -> Trained:
    """The model of a checkpoint that reads images.

    Raises:
        InputError: it cannot be read, or plays a game.
    """
    trained = open_model(path)
    if trained.config.data.dataset == "catch":
        raise InputError(f"{path} plays a game and reads no pictures: name another model")
    return trained


def kind_of(config: Config, spec: DataSpec) -> Kind:
    """What images a model was trained on."""
    data = config.data
    return Kind(
        channels=spec.num_channels,
        size=(spec.height, spec.width),
        canvas=bool(data.canvas_size),
        light_on_dark=data.dataset in ("mnist", "fashion", "digits"),
        box=BOXES.get(data.dataset, 0),
        placed=(data.image_height or DIGIT, data.image_width or DIGIT),
        beyond=tuple(spec.mean),
    )


def look_at(trained: Trained, seen: list[Seen], first_location: tuple[float, float] | None = None) -> Glimpses:
    """The glimpses of a model in pictures, each of which begins at the same place, whatever the others are.

    Args:
        seen: what `fit_picture` returned.
        first_location: (x, y) in [-1, 1], where to begin; None begins as a test does.
    """
    model, spec, config = trained
    device, count = model.std.device, len(seen)
    if first_location is None:
        generator = make_generator(Stream.EVALUATION, config.training.random_seed)
        first = draw_first_locations(model.first_location, 1, torch.device("cpu"), generator)
        first = first.expand(count, *first.shape[1:])
        first = fixed_locations(config, first, torch.tensor([each.centre for each in seen]), generator)
    else:
        first = torch.tensor([first_location]).expand(count, 2)
    images = torch.stack([each.image for each in seen]).to(device)
    batch = Batch(images, torch.full((count,), -1), torch.zeros(count, 2), count, ALONE.shard(count))
    return look(model, batch, first.to(device), spec)


def files_of(names: tuple[str, ...]) -> list[str]:
    """The files that names stand for: a folder for its images, by name.

    Raises:
        InputError: a folder holds none.
    """
    files = []
    for name in names:
        if not Path(name).is_dir():
            files.append(name)
            continue
        images = [path for path in Path(name).iterdir() if path.name.lower().endswith(ENDINGS_OF_ONE)]
        found = sorted(str(path) for path in images if path.is_file() and not is_hidden(path.name))
        if not found:
            raise InputError(f"{name} holds no images ({', '.join(ENDINGS_OF_ONE)}): name another folder")
        files += found
    return files


def read_files(files: list[str], trained: Trained, fit: Fit = "auto", invert: Invert = "auto") -> Iterator[Answer]:
    """What a model reads in each file; "-" is standard input. A file that cannot be read is an answer, too."""
    kind = kind_of(trained.config, trained.spec)
    for start in range(0, len(files), AT_ONCE):
        answers: list[Answer] = []
        seen: list[Seen] = []
        for file in files[start : start + AT_ONCE]:
            try:
                picture = read_picture(read_stdin() if file == "-" else file)
                seen.append(fit_picture(picture, kind, fit, invert))
                answers.append(Answer(file, seen[-1].notes, None, ""))
            except InputError as error:
                answers.append(Answer(file, [], None, str(error)))
        glimpses = look_at(trained, seen) if seen else None
        i = 0
        for answer in answers:
            if not answer.error:
                answer = answer._replace(glimpses=glimpses.take(slice(i, i + 1)))
                i += 1
            yield answer


def read_stdin() -> bytes:
    """Standard input; raises InputError if it is closed."""
    if sys.stdin is None:
        raise InputError("is standard input, which is closed: name a file, or send one: < digit.png")
    return sys.stdin.buffer.read()


def sentences(answer: Answer) -> list[str]:
    """An answer as lines: "digit.png: 7 (98.7 %), then 1 (0.9 %), 9 (0.2 %)", and what was done, if anything was."""
    if answer.error:
        return [f"[!] {answer.file} {answer.error}"]
    first, *others = [f"{name} ({100 * probability:.1f} %)" for name, probability in answer.best(1 + RUNNERS_UP)]
    then = f", then {', '.join(others)}" if others else ""
    return [f"[*] {answer.file}: {first}{then}", *[f"    {', '.join(answer.notes)}"] * bool(answer.notes)]


def table_line(answer: Answer, width: int) -> str:
    """An answer as a line of a table, its file's name padded to this width."""
    if answer.error:
        return f"{answer.file:{width}}  {answer.error}"
    cells = [f"{name} {100 * probability:5.1f} %" for name, probability in answer.best(1 + RUNNERS_UP)]
    return f"{answer.file:{width}}  {'  '.join(cells)}  {', '.join(answer.notes)}"


class CsvTable:
    """Answers as CSV: file, the likeliest classes and their probabilities, what was done, what failed."""

    def __init__(self, out: TextIO):
        self.writer = csv.writer(out, lineterminator="\n")
        ranks = [column for k in range(1 + RUNNERS_UP) for column in (f"class_{k + 1}", f"probability_{k + 1}")]
        self.columns = ["file", *ranks, "done", "error"]
        self.writer.writerow(self.columns)

    def write(self, answer: Answer):
        best = [] if answer.error else answer.best(1 + RUNNERS_UP)
        cells = [cell for name, probability in best for cell in (name, f"{probability:.6f}")]
        cells += [""] * (len(self.columns) - 3 - len(cells))
        self.writer.writerow([answer.file, *cells, ", ".join(answer.notes), answer.error])
