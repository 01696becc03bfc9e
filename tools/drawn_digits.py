"""Draws twenty digits as people photograph, scan and sketch them, asks a model to read them, and prints a table.

    python -m tools.drawn_digits --checkpoint=models/mnist.pt       # the table of docs/your_images.md

Each digit is drawn twice, each time with another pen, paper, size, place and file format. A few harder pictures follow,
of which nobody promises anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.cli import Count, PathText, Settings, run_command
from viz.own_images import Answer, open_reader, read_files

# The pen's path in each digit, as lines through points of a square from (0, 0) to (1, 1), y downwards.


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> list[tuple[float, float]]:
    """Points of an ellipse around (x, y), from one angle to another, in degrees, clockwise from three o'clock."""
    angles = np.radians(np.linspace(start, end, 30))
    return [(x + width / 2 * np.cos(a), y + height / 2 * np.sin(a)) for a in angles]


STROKES: dict[int, list[list[tuple[float, float]]]] = {
    0: [arc(0.5, 0.5, 0.7, 1, -90, 270)],
    1: [[(0.3, 0.25), (0.55, 0), (0.5, 1)]],
    2: [[*arc(0.5, 0.28, 0.65, 0.56, 190, 380), (0.18, 1), (0.86, 0.97)]],
    3: [[*arc(0.47, 0.26, 0.6, 0.52, 200, 440), *arc(0.47, 0.74, 0.7, 0.52, -80, 160)]],
    4: [[(0.45, 0), (0.12, 0.6), (0.9, 0.58)], [(0.68, 0.3), (0.62, 1)]],
    5: [[(0.82, 0.02), (0.27, 0.03), (0.24, 0.42), *arc(0.45, 0.67, 0.72, 0.62, -100, 155)]],
    6: [[(0.7, 0), (0.35, 0.3), (0.2, 0.65), *arc(0.5, 0.72, 0.58, 0.54, 180, 530)]],
    7: [[(0.12, 0.05), (0.85, 0.03), (0.42, 1)]],
    8: [[*arc(0.5, 0.25, 0.54, 0.5, 90, 450), *arc(0.5, 0.75, 0.68, 0.5, -90, 270)]],
    9: [[*arc(0.46, 0.29, 0.6, 0.56, 0, -360), (0.72, 0.6), (0.62, 1)]],
}


class Drawing(NamedTuple):
    """A picture to draw: of what, with what, and into which file."""

    name: str  # of the file
    digit: int
    about: str
    size: tuple[int, int]  # width, height
    height: float  # of the digit, as a fraction of the picture's smaller side
    pen: float  # its width, as a fraction of the digit's height
    place: tuple[float, float] = (0.5, 0.5)  # of the digit's middle
    ink: tuple[int, int, int] = (25, 25, 30)
    paper: tuple[int, int, int] = (255, 255, 255)
    light: float = 0.0  # how much darker the darkest corner is than the brightest one
    noise: float = 0.0  # standard deviation, in grey levels
    save: Callable[[Image.Image, Path], None] = Image.Image.save


def turned(orientation: int) -> Callable[[Image.Image, Path], None]:
    """Saves a picture as a camera does that was held another way: turned, with the way back in its EXIF data."""

    def save(image: Image.Image, path: Path):
        back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.transpose(back[orientation]).save(path, exif=exif, quality=88)

    return save


def on_nothing(image: Image.Image, path: Path):
    """Saves the ink alone; the paper becomes transparent."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    paper = np.median(grey)
    strength = np.abs(grey - paper) / max(np.abs(grey - paper).max(), 1)
    ink = np.asarray(image)[np.unravel_index(strength.argmax(), strength.shape)]
    colours = np.broadcast_to(ink, (*grey.shape, 3))
    Image.fromarray(np.dstack([colours, (255 * strength).round()]).astype(np.uint8)).save(path)


def with_16_bits(image: Image.Image, path: Path):
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def converted(mode: str) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: image.convert(mode).save(path)


WHITE, BLACK, BLUE, PENCIL = (255, 255, 255), (0, 0, 0), (30, 50, 150), (125, 125, 128)
DESK, YELLOW, DIM = (205, 200, 190), (250, 235, 150), (150, 148, 140)
PHOTO: dict[str, Any] = {"paper": DESK, "light": 0.25, "noise": 5.0}
CLEAR = [
    Drawing("01.png", 0, "tiny, thick pen", (28, 28), 0.72, 0.14),
    Drawing("02.png", 1, "tiny, white on black", (28, 28), 0.72, 0.12, ink=WHITE, paper=BLACK),
    Drawing("03.png", 2, "tiny, in a corner", (28, 28), 0.55, 0.13, (0.36, 0.33)),
    Drawing("04.png", 3, "small, thin pen", (64, 64), 0.7, 0.05),
    Drawing("05.png", 4, "transparent paper", (200, 300), 0.6, 0.09, ink=BLACK, save=on_nothing),
    Drawing("06.png", 5, "transparent paper, white ink", (300, 200), 0.7, 0.09, ink=WHITE, paper=BLACK,
            save=on_nothing),
    Drawing("07.jpg", 6, "photo, blue pen", (640, 480), 0.5, 0.08, (0.4, 0.55), ink=BLUE, **PHOTO),
    Drawing("08.jpg", 7, "large photo, thin pen", (4000, 3000), 0.5, 0.03, (0.6, 0.45), **PHOTO),
    Drawing("09.jpg", 8, "large photo, held upright", (3000, 4000), 0.5, 0.06, **PHOTO, save=turned(6)),
    Drawing("10.jpg", 9, "photo, held upside down", (1600, 1200), 0.6, 0.07, **PHOTO, save=turned(3)),
    Drawing("11.jpg", 0, "photo, small in a corner", (1600, 1200), 0.2, 0.1, (0.15, 0.8), **PHOTO),
    Drawing("12.jpg", 1, "photo, marker", (1280, 960), 0.6, 0.18, **PHOTO),
    Drawing("13.png", 2, "palette", (256, 256), 0.8, 0.08, save=converted("P")),
    Drawing("14.png", 3, "16 bits", (256, 256), 0.8, 0.1, ink=(60, 60, 60), save=with_16_bits),
    Drawing("15.png", 4, "1 bit, as a fax", (400, 560), 0.5, 0.07, save=converted("1")),
    Drawing("16.jpg", 5, "pencil on paper, dim light", (1024, 768), 0.5, 0.04, ink=PENCIL, paper=DESK, noise=4.0),
    Drawing("17.jpg", 6, "one half in shade", (1200, 1600), 0.5, 0.08, light=0.6, paper=DESK, noise=4.0),
    Drawing("18.jpg", 7, "colours of a print (CMYK)", (500, 500), 0.6, 0.1, ink=BLUE, paper=YELLOW,
            save=converted("CMYK")),
    Drawing("19.gif", 8, "chalk on a board", (640, 480), 0.6, 0.06, ink=(230, 230, 220), paper=(40, 70, 55), noise=6.0),
    Drawing("20.jpg", 9, "wide photo, held on its side", (4000, 1200), 0.7, 0.1, (0.25, 0.5), **PHOTO, save=turned(8)),
]  # fmt: skip


def squared(image: Image.Image, path: Path):
    """Saves the picture on squared paper."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for at in range(0, max(width, height), height // 16):
        draw.line([(at, 0), (at, height)], fill=(130, 150, 190), width=2)
        draw.line([(0, at), (width, at)], fill=(130, 150, 190), width=2)
    image.save(path)


def on_a_table(image: Image.Image, path: Path):
    """Saves a sheet of paper that lies on a dark table."""
    width, height = image.size
    whole = Image.new("RGB", (width * 2, height * 2), (70, 45, 30))
    whole.paste(image, (width // 2, height // 3))
    whole.save(path)


def with_another(image: Image.Image, path: Path):
    """Saves two digits in one picture: it, and half of it beside it."""
    width, height = image.size
    whole = Image.new("RGB", (width * 2, height), image.getpixel((0, 0)))
    whole.paste(image, (0, 0))
    whole.paste(image.crop((0, 0, width, height)), (width * 3 // 4, 0))
    whole.save(path)


def sideways(image: Image.Image, path: Path):
    image.transpose(Image.Transpose.ROTATE_90).save(path)


HARD = [
    Drawing("21.png", 3, "on squared paper", (640, 640), 0.6, 0.08, save=squared),
    Drawing("22.png", 5, "a sheet on a dark table", (400, 400), 0.6, 0.08, save=on_a_table),
    Drawing("23.png", 7, "two digits", (300, 300), 0.7, 0.08, save=with_another),
    Drawing("24.png", 2, "turned, without EXIF", (300, 300), 0.7, 0.08, save=sideways),
    Drawing("25.png", 8, "cut off by the border", (300, 300), 0.9, 0.08, (0.5, 0.85)),
]


def draw(drawing: Drawing, folder: Path, seed: int) -> Path:
    """Draws a digit into a file, by a hand that shakes as the seed says."""
    random = np.random.default_rng((seed, *drawing.name.encode()))
    width, height = drawing.size
    scale = 4 if max(drawing.size) < 1000 else 1  # drawn larger and reduced, so that edges are smooth
    tall = drawing.height * min(width, height)
    lean, turn = random.uniform(-0.25, 0.1), np.radians(random.uniform(-8, 8))
    stretch = random.uniform(0.6, 0.85)
    to_hand = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[stretch, lean], [0, 1]]
    ink = Image.new("L", (width * scale, height * scale))
    brush = ImageDraw.Draw(ink)
    across = max(drawing.pen * tall * scale, 1)
    for stroke in STROKES[drawing.digit]:
        points = np.array(stroke) - 0.5 + random.normal(0, 0.012, 2)
        points = (points @ to_hand.T) * tall + np.array(drawing.place) * drawing.size
        wobble = np.cumsum(random.normal(0, 0.004 * tall, points.shape), axis=0)
        points = [tuple(point) for point in (points + wobble - wobble.mean(axis=0)) * scale]
        brush.line(points, fill=255, width=round(across), joint="curve")
        for x, y in (points[0], points[-1]):
            brush.ellipse([x - across / 2, y - across / 2, x + across / 2, y + across / 2], fill=255)
    ink = ink.resize(drawing.size, Image.Resampling.BOX) if scale > 1 else ink.filter(ImageFilter.GaussianBlur(1.5))
    strength = np.asarray(ink, dtype=np.float32)[..., None] / 255
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    shade = 1 - drawing.light * (down + right)[..., None] / 2
    colours = ((1 - strength) * drawing.paper + strength * drawing.ink) * shade
    colours += random.normal(0, 1, colours.shape[:2])[..., None] * drawing.noise
    path = folder / drawing.name
    drawing.save(Image.fromarray(colours.clip(0, 255).round().astype(np.uint8)), path)
    return path


@dataclass(frozen=True)
class DrawnDigits(Settings):
    """Draws twenty digits as people photograph, scan and sketch them, and prints what a model reads in them."""

    checkpoint: PathText = "./models/mnist.pt"
    """The model."""
    folder: PathText = "./plots/drawn_digits"
    """Folder for the pictures."""
    random_seed: Count = 1
    """Of the hand that shakes."""


def main(args: DrawnDigits) -> int:
    """Draws the pictures, prints the table and returns how many of the clear digits are read right."""
    trained = open_reader(args.checkpoint)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    right = 0
    print("| picture | pixels | digit | read | probability | runner-up |\n| --- | --- | --- | --- | --- | --- |")
    for drawing in [*CLEAR, *HARD]:
        [answer] = read_files([str(draw(drawing, folder, args.random_seed))], trained)
        print(row(drawing, answer))
        right += drawing in CLEAR and is_right(drawing, answer)
    print(f"\n{right} of {len(CLEAR)} clear digits are read right.")
    return right


def is_right(drawing: Drawing, answer: Answer) -> bool:
    return not answer.error and answer.best(1)[0][0] == str(drawing.digit)


def row(drawing: Drawing, answer: Answer) -> str:
    """A line of the table."""
    kind = f"{drawing.about}, {Path(drawing.name).suffix[1:].upper()}"
    start = f"| {kind} | {drawing.size[0]}x{drawing.size[1]} | {drawing.digit} "
    if answer.error:
        return f"{start}| {answer.error} | | |"
    (read, probability), (other, less) = answer.best(2)
    read = read if is_right(drawing, answer) else f"**{read}**"
    return f"{start}| {read} | {100 * probability:.1f} % | {other} ({100 * less:.1f} %) |"


if __name__ == "__main__":
    run_command(main, DrawnDigits, prog="tools.drawn_digits")
