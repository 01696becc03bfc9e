"""A shipped model is small, holds nothing of its author's machine, and tests as the run that it comes from.

Without PyTorch, it predicts the same.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, SIZES, assert_one_line, command

from config import FREE, HINTS, config_of, make_config, names_marked
from main import configure
from main import main as train_or_test
from model import RecurrentAttention
from tools.export import Export, main, onnx_of
from training.checkpoint import MODEL_KEYS, load_checkpoint
from training.cli import InputError
from viz.record import open_checkpoint

SHIPPED = sorted((ROOT / "models").glob("*.pt"))


def test_a_shipped_model_tests_as_its_run_did_and_is_no_run(run, tmp_path, capsys):
    config = run("--epochs=1", "--run_name=mine")
    capsys.readouterr()
    run("--is_train=False", "--run_name=mine")
    of_run = capsys.readouterr().out
    [path] = main(Export(str(config.run_dir), str(tmp_path / "models")))
    assert path.stat().st_size < (config.run_dir / "best.pt").stat().st_size / 2
    capsys.readouterr()
    for _ in range(2):  # the first leaves nothing that would hide the model from the second
        train_or_test(configure(["--is_train=False", f"--checkpoint={path}", "--use_gpu=False"]))
        assert capsys.readouterr().out == of_run
    assert [file.name for file in path.parent.iterdir()] == ["digits.pt"]
    assert RecurrentAttention.load(path).num_glimpses == 3


def test_a_shipped_model_holds_the_settings_of_its_training_and_none_of_the_call_and_the_machine(run, tmp_path):
    config = run("--epochs=1", "--run_name=mine", "--num_workers=1")
    [path] = main(Export(str(config.run_dir), str(tmp_path / "models")))
    exported = load_checkpoint(path)
    assert exported.keys() == MODEL_KEYS.keys()
    expected, defaults = config.flat(), make_config().flat()
    assert any(expected[name] != defaults[name] for name in names_marked(FREE))
    expected.update({name: defaults[name] for name in names_marked(FREE)})
    assert exported["config"] == expected


def test_half_precision_halves_the_weights_and_rounds_them(run, tmp_path):
    config = run("--epochs=1")
    whole, half = (main(Export(str(config.run_dir), str(tmp_path / f"{half}"), half))[0] for half in (False, True))
    small, large = (sum(w.nbytes for w in load_checkpoint(path)["model_state"].values()) for path in (half, whole))
    assert small == large / 2
    exact, rounded = (RecurrentAttention.load(path).state_dict() for path in (whole, half))
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    for name in exact:
        torch.testing.assert_close(rounded[name], exact[name], rtol=2**-11, atol=2**-24)


def test_a_shipped_model_cannot_be_resumed(run, tmp_path):
    config = run("--epochs=1")
    [path] = main(Export(str(config.run_dir), str(tmp_path / "models")))
    (config.run_dir / "last.pt").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="not a whole checkpoint"):
        run("--epochs=2", "--resume=True")


def test_no_run_is_one_line(tmp_path):
    result = command("-m", "tools.export", f"--run_dir={tmp_path}")
    assert_one_line(result, "tools.export: no checkpoint at")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_models_are_as_the_export_writes_them(path):
    model = load_checkpoint(path)
    assert model.keys() == MODEL_KEYS.keys()
    assert model["config"].keys() <= HINTS.keys()  # a setting that came later has its default
    config, defaults = config_of(model["config"], path), make_config().flat()
    assert config.data.task == path.stem
    assert all(config.flat()[name] == defaults[name] for name in names_marked(FREE))
    RecurrentAttention.load(path)


# Without PyTorch.


def session_of(content: bytes):
    """An ONNX file in onnxruntime, on the CPU; skips the test where that, or the exporter, is not installed."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: requirements-onnx.txt")
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def needs_exporter():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: requirements-onnx.txt")


def assert_predicts_the_same(session, model: RecurrentAttention, images: torch.Tensor, first_locations: torch.Tensor):
    """Same classes, probabilities to 1e-5 after every glimpse, the same places looked at."""
    feed = {"images": images.numpy()}
    if model.first_location != "learned":
        feed["first_locations"] = first_locations.numpy()
    log_probs, locations, probabilities = session.run(["log_probs", "locations", "probabilities"], feed)
    with torch.no_grad():
        rollout = model(images, first_locations)
        expected = model.classifier(rollout.hiddens).exp()
    np.testing.assert_array_equal(log_probs.argmax(1), rollout.log_probs.argmax(1))
    np.testing.assert_allclose(np.exp(log_probs), rollout.log_probs.exp(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(locations, rollout.locations, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("core", "side", "first_location"),
    [("relu", 12, "random"), ("lstm", 64, "learned")],  # coarse patches from a summed-area table, or row by row
)
def test_an_exported_model_takes_any_number_of_images(core, side, first_location):
    needs_exporter()
    sizes = {**SIZES, "num_channels": 2}
    model = RecurrentAttention(**sizes, core=core, first_location=first_location).normalize_by([0.3, 0.2], [0.5, 0.4])
    data = {"num_channels": 2, "height": side, "width": side + 1, "classes": ["a", "b", "c"]}
    session = session_of(onnx_of(model.eval(), data))
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]
    random = torch.Generator().manual_seed(1)
    for count in (1, 2, 3, 17):
        images = torch.randint(256, (count, 2, side, side + 1), dtype=torch.uint8, generator=random)
        begun = torch.zeros(count, 0, 2) if first_location == "learned" else torch.rand(count, 2, generator=random)
        assert_predicts_the_same(session, model, images, begun)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "catch"], ids=lambda path: path.stem)
def test_a_shipped_model_predicts_the_same_without_pytorch(path, tmp_path, mnist_dir):
    needs_exporter()
    [out] = main(Export(checkpoint=str(path), onnx=str(tmp_path / "model.onnx")))
    source = open_checkpoint(path, str(mnist_dir))
    images = source.loader.examples.images[:1000].cpu()
    model, begun = source.model.cpu(), source.first_locations[:1000].cpu()
    assert_predicts_the_same(session_of(out.read_bytes()), model, images, begun)


def test_safetensors_hold_the_weights_and_what_builds_the_model(run, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed: requirements-onnx.txt")
    config = run("--epochs=1")
    [path] = main(Export(str(config.run_dir), safetensors=str(tmp_path / "model.safetensors")))
    with safetensors.safe_open(path, "pt") as file:
        built = {name: json.loads(text) for name, text in file.metadata().items()}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = RecurrentAttention.of({**built, "model_state": state}).eval()
    images, begun = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8), torch.zeros(5, 2)
    expected = RecurrentAttention.load(config.run_dir / "best.pt")(images, begun)
    assert all(torch.equal(a, b) for a, b in zip(model(images, begun), expected, strict=True))


@pytest.mark.slow
def test_the_example_without_pytorch_works_as_written(tmp_path):
    """The block of Python of docs/without_pytorch.md, in a process that has no torch."""
    needs_exporter()
    page = (ROOT / "docs" / "without_pytorch.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    assert len(block.strip().splitlines()) <= 10
    main(Export(checkpoint=str(ROOT / "models" / "mnist.pt"), onnx=str(tmp_path / "mnist.onnx")))
    code = f"{block}\nimport sys\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"\d", done.stdout)
    assert sum(int(answer) == digit for digit, answer in enumerate(answers[:9])) >= 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"onnx": "a.onnx", "half": True}, "half"),
        ({"safetensors": "a", "models_dir": "elsewhere"}, "models_dir"),
        ({"checkpoint": "a.pt"}, "--onnx="),
        ({"checkpoint": "a.pt", "onnx": "a.onnx", "run_dir": "elsewhere"}, "run_dir"),
    ],
)
def test_flags_that_would_change_nothing_are_named(fields, named):
    with pytest.raises(InputError, match=named):
        Export(**fields)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, tmp_path):
    for name, field in (("safetensors.torch", "safetensors"), ("onnxscript", "onnx")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=r"not installed: pip install -r requirements-onnx.txt"):
            main(Export(checkpoint=str(ROOT / "models" / "mnist.pt"), **{field: str(tmp_path / "a")}))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_learned_policy_is_not_exported_and_loading_it_warns(run, tmp_path):
    best = run("--epochs=1", "--policy=scan").run_dir / "best.pt"
    for name in ("onnx", "safetensors"):
        with pytest.raises(InputError, match="was trained with --policy=scan"):
            main(Export(checkpoint=str(best), **{name: str(tmp_path / name)}))
    with pytest.warns(UserWarning, match="was trained with --policy=scan"):
        RecurrentAttention.load(best)
