"""What people hand to a loaded model in a notebook: it is read right, or one line says what to give instead."""

import warnings

import numpy as np
import pytest
import torch
from helpers import SIZES

from model import RecurrentAttention

BYTES = torch.randint(0, 256, (5, 1, 13, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CENTRE = torch.zeros(5, 2)


@pytest.fixture
def model() -> RecurrentAttention:
    torch.manual_seed(0)
    return RecurrentAttention(**SIZES).normalize_by([0.5], [0.3]).eval()


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (BYTES[0], ValueError, r"\(B, C, H, W\) with C = 1, not \(1, 13, 16\); images\[None\] makes a batch"),
        (BYTES[:, 0], ValueError, r"not \(5, 13, 16\); images\[:, None\] gives grey images their channel"),
        (BYTES.expand(-1, 3, -1, -1), ValueError, r"with C = 1, not \(5, 3, 13, 16\)$"),
        (BYTES.permute(0, 2, 3, 1), ValueError, r"not \(5, 13, 16, 1\); images\.permute\(0, 3, 1, 2\)"),
        (BYTES[:0], ValueError, r"not \(0, 1, 13, 16\)"),
        (BYTES.numpy(), TypeError, r"a tensor, not ndarray: torch\.from_numpy"),
        (BYTES.long(), TypeError, r"not torch\.int64: images\.to\(torch\.uint8\)"),
        (BYTES > 127, TypeError, r"not torch\.bool"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_is_no_batch_of_images_is_named(model, images, error, message, mode):
    with pytest.raises(error, match=message) as raised:
        getattr(model, mode)()(images)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_are_read(model, dtype):
    images = model.normalize(BYTES / 255)
    expected = model(images, CENTRE).log_probs
    torch.testing.assert_close(model(images.to(dtype), CENTRE).log_probs, expected, atol=1e-2, rtol=0)
    from_numpy = torch.from_numpy(BYTES.numpy() / np.float64(255))
    torch.testing.assert_close(model(model.normalize(from_numpy), CENTRE).log_probs, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_model_of_another_precision_reads_bytes_and_floats(model, dtype, mode):
    expected = model(BYTES, CENTRE).log_probs
    images = model.normalize(BYTES / 255)
    model.to(dtype)
    for given in (BYTES, images):
        rollout = getattr(model, mode)()(given, CENTRE)
        assert rollout.log_probs.isfinite().all()
        if mode == "eval":
            torch.testing.assert_close(rollout.log_probs.float(), expected, atol=5e-2, rtol=0)


@pytest.mark.parametrize("scale", [1 / 255, 1], ids=["0 to 1", "0 to 255"])
def test_floats_that_were_not_normalised_are_warned_of_where_the_model_is_called(model, scale):
    with pytest.warns(UserWarning, match=r"seem not to be normalised: .*model\.normalize") as warned:
        model(BYTES * scale if scale != 1 else BYTES.float())
    assert warned[0].filename == __file__


def test_bytes_normalised_floats_and_training_warn_of_nothing(model):
    model(BYTES)
    model(model.normalize(BYTES / 255))
    model(torch.zeros(5, 1, 13, 16))
    model.train()(BYTES / 255)


def test_a_step_of_training_looks_at_no_pixel(model, monkeypatch):
    """It would wait for the device, and a CUDA graph cannot."""
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a number was read from the device"))
    model.train()(BYTES)
    model.train()(BYTES / 255)
    model.eval()(BYTES)


def test_a_compiled_or_exported_model_takes_the_same(model):
    images = model.normalize(BYTES / 255)
    expected = model(images, CENTRE).log_probs
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, CENTRE).log_probs, expected)
    exported = torch.export.export(model, (images, CENTRE), strict=False).module()
    torch.testing.assert_close(exported(images, CENTRE).log_probs, expected)


def test_a_loaded_model_knows_its_classes(run):
    """In the order of its outputs; a folder's are sorted by name, 10 before 2."""
    config = run("--epochs=1")
    checkpoint = torch.load(config.run_dir / "best.pt", weights_only=True)
    checkpoint["data"]["classes"] = [f"class {k}" for k in range(10)]
    torch.save(checkpoint, config.run_dir / "named.pt")
    assert RecurrentAttention.load(config.run_dir / "best.pt").classes == [str(k) for k in range(10)]
    assert RecurrentAttention.load(config.run_dir / "named.pt").classes == [f"class {k}" for k in range(10)]
    assert RecurrentAttention(**SIZES).classes == ["0", "1", "2"]


@pytest.mark.parametrize("shape", [(1, 2), (6, 2), (5, SIZES["num_glimpses"] + 1, 2), (5, 3), (2,), (5, 1, 2, 2)])
def test_first_locations_of_another_shape_are_rejected(shape, model):
    """One place for five images would leave one of them, silently."""
    with pytest.raises(ValueError, match=r"first_locations must be \(5, 2\) or \(5, K, 2\) with K <= "):
        model(BYTES, torch.zeros(shape))
    for right in (CENTRE, CENTRE[:, None, :].expand(-1, SIZES["num_glimpses"], -1), torch.zeros(5, 0, 2)):
        assert len(model(BYTES, right).log_probs) == 5


def test_more_glimpses_than_a_policy_with_a_circle_was_built_for_are_named():
    model = RecurrentAttention(**{**SIZES, "scan_radius": 0.4}).eval()
    model.num_glimpses += 1
    with pytest.raises(ValueError, match=f"a bias for each of {SIZES['num_glimpses'] - 1} locations, none for another"):
        model(BYTES)
    model.num_glimpses = 2
    assert len(model(BYTES).locations) == 5
