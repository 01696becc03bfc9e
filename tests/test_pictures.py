"""`plot_glimpses.py --image=`: pictures of the user's own, one or a folder of them, are read and drawn."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, assert_one_line, command, seven
from PIL import Image

import plot_glimpses
from config import make_config
from images.one_image import MNIST, Seen, fit_picture
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

SHIPPED = ROOT / "models" / "mnist.pt"
MODELS = [path for path in sorted((ROOT / "models").glob("*.pt")) if path.stem != "catch"]


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


def test_a_folder_holds_images_alone_and_the_tilde_is_home(tmp_path, monkeypatch):
    for name in ("a.jfif", "b.PNG", "c.gif"):
        seven().convert("L").save(tmp_path / name, format="PNG")
    (tmp_path / "._a.png").write_bytes(b"a Mac's note")
    (tmp_path / "d.png").mkdir()
    assert [Path(path).name for path in files_of((str(tmp_path),))] == ["a.jfif", "b.PNG", "c.gif"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PlotConfig(checkpoint="x.pt", image=(("~/a.jfif",),)).images == (str(tmp_path / "a.jfif"),)


def test_standard_input_that_is_closed_is_said():
    closed = "import sys; sys.stdin.close(); sys.stdin = None; sys.argv = ['plot_glimpses.py', *sys.argv[1:]]; "
    call = "import runpy; runpy.run_path('plot_glimpses.py', run_name='__main__')"
    result = command("-c", closed + call, f"--checkpoint={SHIPPED}", "--image=-")
    assert_one_line(result, "is standard input, which is closed")
