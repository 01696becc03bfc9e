"""A picture of any kind becomes what a model was trained on, and is read; what is no picture is one clear line."""

import csv
import io

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_one_line, command
from PIL import Image, ImageDraw

import plot_glimpses
from config import make_config
from images.one_image import MNIST, Kind, Seen, fit_picture, is_dark_on_light, pen_width, read_picture
from model import RecurrentAttention
from plot_glimpses import PlotConfig
from tools import drawn_digits
from tools.export import Export
from tools.export import main as export
from training.checkpoint import save_checkpoint
from training.cli import InputError
from viz.files import player
from viz.own_images import files_of, kind_of, look_at, read_files
from viz.record import open_checkpoint, open_model

CANVAS = MNIST._replace(size=(60, 60), canvas=True)
COLOUR = Kind(3, (20, 30), False, False, 0, (28, 28), (0.5, 0.25, 1.0))
SHIPPED = ROOT / "models" / "mnist.pt"
MODELS = [path for path in sorted((ROOT / "models").glob("*.pt")) if path.stem != "catch"]


def seven(size=(300, 200), box=(120, 40, 180, 160), pen=12, ink=0, paper=255) -> Image.Image:
    """A 7 of straight lines, grey."""
    image = Image.new("L", size, paper)
    left, top, right, bottom = box
    corner = (right - pen // 2, top + pen // 2)
    ImageDraw.Draw(image).line([(left, top + pen // 2), corner, (left + 15, bottom)], fill=ink, width=pen)
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two images are of the same thing: JPEG and rounding leave a few grey levels between them."""
    return (a.float() - b.float()).abs().mean() < 2


def test_ink_is_placed_as_mnist_places_its_digits():
    image = fit_picture(seven(), MNIST).image
    assert image.shape == (1, 28, 28) and image.dtype == torch.uint8
    assert image[0, 0, 0] == 0 and image.max() == 255  # light ink on black
    drawn = (image[0] > 20).nonzero()
    height, width = (drawn.max(0).values - drawn.min(0).values + 1).tolist()
    assert max(height, width) == 20 and abs(height / width - 2) < 0.35  # 120 x 60 pixels
    weights = image[0].float()
    middle = (weights.sum(1) * torch.arange(28)).sum() / weights.sum()
    assert abs(middle - 13.5) <= 1


@pytest.mark.parametrize("box", [(5, 5, 65, 125), (230, 75, 290, 195), (120, 40, 180, 160)])
def test_where_the_ink_is_and_how_large_makes_no_difference(box):
    here = fit_picture(seven(box=box), MNIST).image
    assert is_close(here, fit_picture(seven(), MNIST).image)
    large = seven((1200, 800), tuple(4 * side for side in box), pen=48)
    assert (fit_picture(large, MNIST).image.float() - here.float()).abs().mean() < 12


def test_dark_and_light_ink_become_the_same_and_the_notes_say_which_was_inverted():
    dark, light = seven(), seven(ink=255, paper=0)
    assert torch.equal(fit_picture(dark, MNIST).image, fit_picture(light, MNIST).image)
    assert any("inverted" in note for note in fit_picture(dark, MNIST).notes)
    assert not any("inverted" in note for note in fit_picture(light, MNIST).notes)
    stretched = fit_picture(dark, MNIST, "stretch", invert="False").image
    assert stretched[0, 0, 0] == 255 and fit_picture(dark, MNIST, "stretch", invert="True").image[0, 0, 0] == 0
    assert fit_picture(dark, COLOUR._replace(channels=1, beyond=(0.0,))).image.max() == 255  # of other models: never


def test_a_photo_is_turned_upright_by_its_exif_data():
    upright = fit_picture(seven(), MNIST).image
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for orientation, method in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = saved(seven().transpose(method), "JPEG", exif=exif, quality=95)
        assert is_close(fit_picture(read_picture(photo), MNIST).image, upright)
        assert not is_close(fit_picture(Image.open(io.BytesIO(photo)).convert("L"), MNIST).image, upright)


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper_differs_from_the_ink_on_it(ink):
    strength = seven(ink=255, paper=0)
    image = Image.merge("LA", (Image.new("L", strength.size, ink), strength))
    upright = fit_picture(seven(), MNIST).image
    for mode in ("LA", "RGBA"):
        assert torch.equal(fit_picture(read_picture(saved(image.convert(mode), "PNG")), MNIST).image, upright)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_read(mode):
    image = seven()
    if mode in ("I;16", "I"):
        converted = Image.fromarray(np.asarray(image).astype({"I;16": np.uint16, "I": np.int32}[mode]) * 257)
    else:
        converted = image.convert(mode)
    picture = read_picture(saved(converted, "TIFF"))
    assert picture.mode in ("L", "RGB")
    assert is_close(fit_picture(picture, MNIST).image, fit_picture(image, MNIST).image)


def test_a_thin_pen_is_widened_and_a_thick_one_is_not():
    thin, thick = (fit_picture(seven((900, 900), (200, 100, 500, 700), pen), MNIST).image for pen in (6, 70))
    assert thin.float().mean() > 10 and abs(thin.float().mean() - thick.float().mean()) < 12
    assert pen_width(torch.ones(4, 100, dtype=torch.bool)) == pytest.approx(4, rel=0.1)


def test_shade_on_the_paper_is_no_ink():
    shade = np.linspace(1, 0.4, 300)
    image = Image.fromarray((np.asarray(seven(paper=230)) * shade).astype(np.uint8))
    assert (fit_picture(image, MNIST).image.float() - fit_picture(seven(), MNIST).image.float()).abs().mean() < 4


def test_an_image_as_the_training_had_them_goes_in_as_it_is():
    random = np.random.default_rng(1)
    for kind, side in ((MNIST, 28), (CANVAS, 60)):
        pixels = random.integers(1, 256, (side, side), dtype=np.uint8) * (random.random((side, side)) < 0.2)
        seen = fit_picture(Image.fromarray(pixels), kind)
        np.testing.assert_array_equal(seen.image[0], pixels)
        assert seen.notes == []


def test_an_image_smaller_than_a_canvas_is_placed_in_its_middle():
    pixels = np.asarray(seven((20, 28), (4, 4, 16, 24), 3, ink=255, paper=0))
    seen = fit_picture(Image.fromarray(pixels), CANVAS)
    np.testing.assert_array_equal(seen.image[0, 16:44, 20:40], pixels)
    assert seen.image.sum() == pixels.sum() and seen.centre == (0, 0)
    assert seen.notes == ["placed on 60 x 60"]


def test_a_digit_stays_where_it_was_in_the_picture_on_a_canvas():
    for box, (x, y) in (((10, 10, 70, 130), (-1, -1)), ((230, 75, 290, 195), (1, 1)), ((120, 40, 180, 160), (0, 0))):
        seen = fit_picture(seven(box=box), CANVAS)
        assert seen.image.shape == (1, 60, 60)
        rows, columns = (seen.image[0] > 20).nonzero().float().mean(0) / 30 - 1
        assert np.allclose(seen.centre, (columns, rows), atol=0.15)
        assert all((want == 0 and abs(at) < 0.1) or at * want > 0 for at, want in zip(seen.centre, (x, y), strict=True))


def test_padding_keeps_the_aspect_and_stretching_does_not():
    image = Image.new("RGB", (100, 100), (10, 20, 30))
    padded, stretched = (fit_picture(image, COLOUR, fit).image for fit in ("pad", "stretch"))
    assert padded.shape == stretched.shape == (3, 20, 30)
    assert padded[:, 0, 5:25].unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert padded[:, 0, 0].tolist() == [128, 64, 255]  # what the model takes for the world beyond
    assert stretched[:, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(fit_picture(image, COLOUR).image, padded)


def test_without_resizing_an_image_must_fit():
    small = Image.new("RGB", (10, 20))
    assert fit_picture(small, COLOUR, "none").image[:, 0, 0].tolist() == [128, 64, 255]
    with pytest.raises(InputError, match="is 31 x 20 pixels, and the model takes 30 x 20"):
        fit_picture(Image.new("RGB", (31, 20)), COLOUR, "none")


@pytest.mark.parametrize("paper", [0, 128, 255])
def test_empty_paper_is_said_to_be_empty(paper):
    noise = np.random.default_rng(0).integers(-3, 3, (200, 200))
    image = Image.fromarray((paper + noise).clip(0, 255).astype(np.uint8))
    with pytest.raises(InputError, match="shows no ink"):
        fit_picture(image, MNIST)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_pictures_of_a_line_or_a_point_break_nothing(size):
    image = Image.new("L", size)
    image.putpixel((0, 0), 255)
    for kind in (MNIST, CANVAS, COLOUR):
        for fit in ("auto", "ink", "pad", "stretch"):
            try:
                assert fit_picture(image, kind, fit).image.shape == (kind.channels, *kind.size)
            except InputError as error:
                assert "no ink" in str(error)


def test_what_is_no_picture_is_said_to_be_none(tmp_path):
    whole = saved(seven(), "PNG")
    huge = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]  # a header that claims 3,600 million pixels
    for content in (b"", b"hello", whole[:100], saved(seven(), "JPEG")[:300], huge):
        (tmp_path / "a.png").write_bytes(content)
        for source in (content, tmp_path / "a.png"):
            with pytest.raises(InputError, match=r"^(is no|cannot be read)"):
                read_picture(source)
    for name in ("missing.png", ""):
        with pytest.raises(InputError, match="is no file"):
            read_picture(tmp_path / name)


def test_a_large_picture_is_rejected_before_it_is_decoded():
    with pytest.raises(InputError, match="has 12000 x 9000 pixels, more than 100,000,000"):
        read_picture(saved(Image.new("1", (12_000, 9_000)), "PNG"))


def test_the_ink_is_dark_whatever_its_part_of_the_paper():
    for pen in (4, 12, 30):
        assert is_dark_on_light(torch.from_numpy(np.array(seven(pen=pen))[None] / 255))
        assert not is_dark_on_light(torch.from_numpy(np.array(seven(pen=pen, ink=255, paper=0))[None] / 255))


# The command.


@pytest.fixture
def pictures(tmp_path):
    """A folder of two pictures, one that is damaged, and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    seven().save(folder / "b.png")
    seven(ink=255, paper=0).save(folder / "a.JPG")
    (folder / "c.png").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("not read")
    return folder


def test_a_picture_is_read_and_animated(pictures, tmp_path, capsys):
    config = PlotConfig(
        checkpoint=str(SHIPPED), image=((str(pictures / "b.png"),),), plot_dir=str(tmp_path / "plots")
    )  # fmt: skip
    [path] = plot_glimpses.main(config)
    assert path == tmp_path / "plots" / "image_b.gif" and Image.open(path).n_frames == 6
    line, notes, picture = capsys.readouterr().out.splitlines()
    assert line.startswith(f"[*] {pictures / 'b.png'}: 7 (") and ", then " in line
    assert notes.strip() == "dark ink on light paper inverted, ink found and scaled as a digit"
    assert picture == f"[*] Picture in {path}"


def test_a_folder_prints_a_table_and_the_damaged_picture_is_named_at_the_end(pictures, capsys):
    with pytest.raises(InputError, match=r"1 of 3 pictures not read: .*c\.png is no image"):
        plot_glimpses.main(PlotConfig(checkpoint=str(SHIPPED), image=((str(pictures),),)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0][-5:] for line in lines] == ["a.JPG", "b.png", "c.png"]
    assert all(line.split()[1] == "7" for line in lines[:2]) and "is no image" in lines[2]


def test_a_folder_as_csv(pictures, tmp_path, capsys):
    config = PlotConfig(checkpoint=str(SHIPPED), image=((str(pictures),),), csv=True, out=str(tmp_path / "a.png"))
    with pytest.raises(InputError):
        plot_glimpses.main(config)
    assert (tmp_path / "a.png").exists()  # if it is asked for
    a, b, c = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert a["file"].endswith("a.JPG") and a["class_1"] == b["class_1"] == "7" and a["error"] == ""
    assert 0.3 < float(b["probability_1"]) <= 1 and float(b["probability_1"]) >= float(b["probability_2"])
    assert "inverted" in b["done"] and "inverted" not in a["done"]
    assert c["class_1"] == c["probability_3"] == "" and "is no image" in c["error"]


def test_pictures_are_named_in_every_way_of_the_command_line(pictures, tmp_path):
    a, b = pictures / "a.JPG", pictures / "b.png"
    out = f"--out={tmp_path / 'x.html'}"
    named = command("plot_glimpses.py", f"--checkpoint={SHIPPED}", "--image", str(a), str(b), f"--image={b}", out)
    assert named.returncode == 0, named.stderr
    assert [line.split(":")[0][4:] for line in named.stdout.splitlines() if ": 7 (" in line] == [str(a), str(b), str(b)]
    with open(b, "rb") as file:
        piped = command("plot_glimpses.py", f"--checkpoint={SHIPPED}", "--image=-", "--csv=True", stdin=file)
    assert piped.returncode == 0 and piped.stdout.splitlines()[1].startswith("-,7,")
    missing = command("plot_glimpses.py", f"--checkpoint={SHIPPED}", "--image=nothing.png")
    assert_one_line(missing, "plot_glimpses.py: nothing.png is no file")


@pytest.mark.parametrize(
    "fields",
    [
        {"image": (("a.png",),)},
        {"image": ((),), "checkpoint": "best.pt"},
        {"image": (("-", "-"),), "checkpoint": "best.pt"},
        {"image": (("a.png",),), "checkpoint": "best.pt", "errors": True},
        {"csv": True, "checkpoint": "best.pt"},
        {"image_fit": "pad"},
        {"invert": "True"},
    ],
)
def test_a_setting_that_would_change_nothing_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        PlotConfig(**fields)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        files_of((str(tmp_path),))


def test_a_reading_does_not_depend_on_the_other_pictures():
    trained = open_model(SHIPPED)
    kind = kind_of(trained.config, trained.spec)
    seen = [fit_picture(seven(pen=pen), kind) for pen in (4, 12, 25)]
    together = look_at(trained, seen)
    for i, each in enumerate(seen):
        np.testing.assert_allclose(
            look_at(trained, [each]).probabilities[0], together.probabilities[i], atol=1e-5, rtol=0
        )
    elsewhere = look_at(trained, seen[:1], first_location=(0.5, -0.5))
    np.testing.assert_allclose(elsewhere.locations[0, 0], (0.5, -0.5))


def test_a_model_of_a_game_reads_no_pictures(tmp_path):
    """Nor is it exported to ONNX."""
    config = make_config(task="catch", hidden_size=16, glimpse_hidden=8, loc_hidden=8, use_gpu=False)
    spec = {
        "classes": ["left", "stay", "right"],
        "num_channels": 1,
        "height": 24,
        "width": 24,
        "mean": [0.0],
        "std": [1.0],
    }
    model_args = config.model_args(1, 3)
    state = RecurrentAttention(**model_args).state_dict()
    whole = {"epoch": 1, "best_valid_acc": 0.0, "model_state": state, "model_args": model_args, "data": spec}
    save_checkpoint({**whole, "config": config.flat()}, tmp_path / "game.pt")
    seven().save(tmp_path / "a.png")
    path, image = str(tmp_path / "game.pt"), ((str(tmp_path / "a.png"),),)
    for attempt in (
        lambda: plot_glimpses.main(PlotConfig(checkpoint=path, image=image)),
        lambda: export(Export(checkpoint=path, onnx=str(tmp_path / "game.onnx"))),
    ):
        with pytest.raises(InputError, match="plays a game"):
            attempt()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_shipped_model_reads_a_picture(path, tmp_path):
    seven((800, 600), (300, 100, 500, 500), 40).save(tmp_path / "a.png")
    [answer] = read_files([str(tmp_path / "a.png")], open_model(path))
    assert answer.error == "" and len(answer.best(3)) == 3
    assert answer.best(1)[0][0] == "7" or path.stem == "fashion"


@pytest.mark.slow
def test_mnists_own_images_are_read_as_well_dark_on_white_where_their_ink_is_found(mnist_dir):
    source = open_checkpoint(SHIPPED, str(mnist_dir))
    images, labels = source.loader.examples.images[:1000].cpu(), source.loader.examples.labels[:1000].numpy(force=True)
    trained = open_model(SHIPPED)
    inverted = [fit_picture(Image.fromarray(255 - image[0].numpy()), MNIST) for image in images]
    found = look_at(trained, inverted).predictions[:, -1] == labels
    as_they_are = look_at(trained, [Seen(image, (0.0, 0.0), []) for image in images]).predictions[:, -1] == labels
    assert as_they_are.mean() > 0.98 and found.mean() > as_they_are.mean() - 0.015


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_eighteen_of_twenty_clear_digits_are_read_right(seed, tmp_path):
    args = drawn_digits.DrawnDigits(checkpoint=str(SHIPPED), folder=str(tmp_path), random_seed=seed)
    assert drawn_digits.main(args) >= 18


def test_the_player_is_one_file_that_loads_nothing():
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    page = player(frames, fps=2).decode()
    assert page.count("iVBOR") == 2 and 'max="2"' in page and "FRAMES" not in page
    assert "http" not in page and "src=" not in page
