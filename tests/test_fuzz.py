"""Whatever the flags or the bytes: it works, or ends with the clear line. Never a traceback, never code run."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import train, write_idx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from config import Config, get_config, make_config
from images.batches import spec_of
from images.datasets import read_examples
from training.checkpoint import load_checkpoint, model_of
from training.cli import InputError
from viz.record import load_glimpses

pytestmark = pytest.mark.slow
BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FIELDS = list(make_config().flat())
VALUES = st.one_of(
    st.integers(-3, 3).map(str), st.integers().map(str), st.floats().map(str), st.text(max_size=5),
    st.sampled_from(["True", "False", "None", "", "auto", "mnist", "digits", "a/b", "..", "nan", "inf", "1e-3"]),
)  # fmt: skip
JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=4), st.lists(st.integers())
)


@BOUNDED
@given(st.lists(st.tuples(st.sampled_from([*FIELDS, "std_", "glimpses"]), VALUES), max_size=4))
def test_flags(capsys, pairs):
    try:
        config = get_config([f"--{name}={value}" for name, value in pairs])
    except InputError as error:
        assert "\n" not in str(error) or any("\n" in value for _, value in pairs)
    except SystemExit as stop:
        assert stop.code == 2 and capsys.readouterr().err
    else:
        assert make_config(**config.flat()) == config


@BOUNDED
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3), st.binary(max_size=30), st.booleans())
def test_saved_settings(tmp_path, changes, garbage, cut):
    content = json.dumps({**make_config().flat(), **changes}).encode()
    folder = tmp_path / "ram_6_8x8_1"
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_bytes(content[: len(garbage) * 20] + garbage if cut else content)
    try:
        get_config(["--resume=True", f"--ckpt_dir={tmp_path}"])
    except InputError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(dataset="digits", hidden_size=8, loc_hidden=4, glimpse_hidden=4, num_glimpses=2, epochs=1,
                    ckpt_dir=str(folder), plot_dir=str(folder / "plots"), batch_size=256, use_gpu=False)  # fmt: skip
    train(config)
    return config


def resume(config: Config, path: Path):
    """Everything that reads a checkpoint, and an epoch of training that resumes from it."""
    checkpoint = load_checkpoint(path, to_resume=True)
    spec_of(checkpoint, path)
    model_of(checkpoint, path)
    train(config.replace(resume=True, epochs=2, ckpt_dir=str(path.parents[1]), plot_freq=1000), checkpoint)


@BOUNDED
@given(
    st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=8)), max_size=3), st.integers(0), st.booleans()
)
def test_checkpoint_bytes(trained, tmp_path, patches, end, cut):
    content = bytearray((trained.run_dir / "last.pt").read_bytes())
    for place, patch in patches:
        place %= len(content)
        content[place : place + len(patch)] = patch
    path = tmp_path / trained.name / "last.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content[: end % len(content)] if cut else content)
    try:
        resume(trained, path)
    except InputError as error:
        assert "\n" not in str(error)


@BOUNDED
@given(
    st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=8)), max_size=3), st.integers(0), st.booleans()
)
def test_glimpses_bytes(trained, tmp_path, patches, end, cut):
    content = bytearray((trained.run_plots / "glimpses_1.npz").read_bytes())
    for place, patch in patches:
        place = place % len(content) if place % 2 else -1 - place % 2000  # half of them in the directory, at the end
        content[place : place + len(patch) or None] = patch
    path = tmp_path / "glimpses_1.npz"
    path.write_bytes(content[: end % len(content)] if cut else content)
    try:
        load_glimpses(path)
    except InputError as error:
        assert "\n" not in str(error)


@BOUNDED
@given(st.data())
def test_checkpoint_contents(trained, tmp_path, data):
    """A well-formed file whose entries are missing, or are something else, at any depth."""
    checkpoint = load_checkpoint(trained.run_dir / "last.pt")
    node, depth = checkpoint, data.draw(st.integers(0, 2))
    key = data.draw(st.sampled_from(sorted(node)))
    for _ in range(depth):
        if not isinstance(node[key], dict) or not node[key]:
            break
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node, key=str)))
    if data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(JSON)
    path = tmp_path / trained.name / "last.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(checkpoint, path)
    try:
        resume(trained, path)
    except InputError as error:
        assert "\n" not in str(error)


@BOUNDED
@given(
    st.sampled_from(["images-idx3", "labels-idx1"]),
    st.integers(0),
    st.binary(max_size=6),
    st.integers(0),
    st.booleans(),
)
def test_idx_bytes(tmp_path, name, place, patch, end, cut):
    raw = tmp_path / "MNIST" / "raw"
    for half in ("train", "t10k"):
        write_idx(raw / f"{half}-images-idx3-ubyte", np.zeros((12, 28, 28)))
        write_idx(raw / f"{half}-labels-idx1-ubyte", np.arange(12) % 10)
    path = raw / f"train-{name}-ubyte"
    content = bytearray(path.read_bytes())
    place %= min(len(content), 40)  # the header, mostly
    content[place : place + len(patch)] = patch
    path.write_bytes(content[: end % len(content)] if cut else content)
    try:
        examples, *_ = read_examples(make_config(data_dir=str(tmp_path)).data, 1, train=True)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(examples.images) == len(examples.labels) and examples.images.dtype == torch.uint8


TURNED = Image.Exif()
TURNED[0x0112] = 6
IMAGES = {"PNG": {}, "JPEG": {"exif": TURNED}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "PPM": {}}
PATCHES = st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=4)), max_size=4)


@BOUNDED
@given(st.sampled_from(sorted(IMAGES)), PATCHES, st.integers(0), st.booleans())
def test_image_bytes(tmp_path, kind, patches, end, cut):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6)).save(tmp_path / "train" / name / "1.png")
    buffer = io.BytesIO()
    Image.effect_noise((9, 6), 50).convert("RGB").save(buffer, kind, **IMAGES[kind])
    content = bytearray(buffer.getvalue())
    for place, patch in patches:
        place %= len(content)
        content[place : place + len(patch)] = patch
    (tmp_path / "train" / "a" / "2.png").write_bytes(content[: end % len(content)] if cut else content)
    config = make_config(task="folder", data_dir=str(tmp_path), num_workers=0, image_width=9, image_height=6)
    try:
        examples = read_examples(config.data, 1, train=True).examples
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert examples.images.shape == (3, 3, 6, 9)
