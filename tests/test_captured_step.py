"""A whole step as one CUDA graph: it computes what plain steps compute, on new images and numbers each time."""

import json
import os
import shutil

import pytest
import torch
from helpers import ROOT, assert_same, command, loaders_of

import training.captured_step
from config import make_config
from trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = {
    "digits": {},
    "canvas": {"canvas_size": 34, "num_clutter": 2},
    "coarse patches": {"num_patches": 3, "glimpse_scale": 2, "locator_hidden": 0, "scan_radius": 0.0},
    "lstm": {"core": "lstm", "core_init": "identity"},
    "sgd": {"optimizer": "sgd", "init_lr": 0.01, "clip_grad_norm": 1.0},
    "adam": {"optimizer": "adam"},
    "one glimpse": {"num_glimpses": 1},
    "learned first": {"first_location": "learned", "weight_decay": 0.1},
    "random": {"policy": "random"},
    "scan": {"policy": "scan"},
    "oracle": {"policy": "oracle", "canvas_size": 40},
}


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> torch.device:
    """A GPU, or a CPU with graphs that call what was captured again where a GPU's would replay it."""
    if request.param == "cpu":
        monkeypatch.setattr(training.captured_step, "on_another_stream", lambda function: function())
        monkeypatch.setattr(training.captured_step, "capture", lambda function, generators: function)
        monkeypatch.setattr("trainer.can_capture", lambda device: True)
    return torch.device(request.param)


def make(device: torch.device, tmp_path, checkpoint: dict | None = None, **settings) -> Trainer:
    folders = {name: str(tmp_path / name) for name in ("ckpt_dir", "logs_dir", "plot_dir")}
    small = {"task": "digits", "hidden_size": 32, "num_glimpses": 3, "epochs": 2, "precision": "float32"}
    config = make_config(**{**small, **folders, **settings})
    config.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    return Trainer(config, loaders_of(config, device), device, checkpoint)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach().cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_end_at_the_weights_of_plain_ones(device, kind, tmp_path):
    before = weights(make(device, tmp_path, **KINDS[kind]))
    plain, captured = (make(device, tmp_path, compile=choice, **KINDS[kind]) for choice in ("False", "auto"))
    for trainer in (plain, captured):
        trainer.train()
    assert captured.captured_step and not plain.captured_step
    way = (weights(plain) - before).norm()
    assert (weights(captured) - weights(plain)).norm() <= (0 if device.type == "cpu" else 1e-3) * way
    averages = [torch.nn.utils.parameters_to_vector(each.average.parameters()) for each in (plain, captured)]
    assert (averages[0] - averages[1]).norm() < 1e-3 * way
    torch.testing.assert_close(captured.evaluate(captured.valid_loader).loss, plain.evaluate(plain.valid_loader).loss,
                               rtol=1e-3, atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("kind", ["digits", "canvas", "sgd"])
def test_a_run_resumed_within_an_epoch_equals_one_that_was_not(device, kind, tmp_path, monkeypatch):
    whole = make(device, tmp_path, save_every_steps=5, **KINDS[kind])
    kept = tmp_path / "kept.pt"
    save = whole.save_checkpoint

    def save_and_keep(is_best=False):
        save(is_best)
        if (whole.progress.epoch, whole.progress.step) == (1, 5):
            shutil.copy(whole.config.run_dir / "last.pt", kept)

    monkeypatch.setattr(whole, "save_checkpoint", save_and_keep)
    whole.train()
    expected = torch.load(whole.config.run_dir / "last.pt", weights_only=True)
    make(device, tmp_path, torch.load(kept, weights_only=True), save_every_steps=5, **KINDS[kind]).train()
    resumed = torch.load(whole.config.run_dir / "last.pt", weights_only=True)
    for state in ("model_state", "trained_state", "optim_state", "best_valid_acc", "epoch"):
        assert_same(resumed[state], expected[state])


def test_each_replay_takes_the_images_and_the_numbers_it_is_given(device, tmp_path):
    trainer = make(device, tmp_path, canvas_size=34, num_clutter=2, init_lr=1e-20, ema_decay=0.0)
    trainer.compile()
    step, (index, other) = trainer.captured_step, trainer.train_loader.order()[:2]
    first, again, places, canvases, images = (
        step(*given, 1).tolist()
        for given in ((index, [1, 2]), (index, [1, 2]), (index, [3, 2]), (index, [1, 3]), (other, [1, 2]))
    )
    assert first == again
    assert len({tuple(losses) for losses in (first, places, canvases, images)}) == 4


def test_warming_up_changes_nothing(device, tmp_path):
    trainer = make(device, tmp_path)
    before = [tensor.clone() for tensor in (*trainer.model.parameters(), *trainer.average.parameters())]
    trainer.compile()
    assert_same([*trainer.model.parameters(), *trainer.average.parameters()], [torch.nn.Parameter(b) for b in before])
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert states and not any(value.any() for value in states)


def test_a_buffer_that_a_step_changes_is_among_what_warming_up_restores(device, tmp_path):
    trainer = make(device, tmp_path)
    for model in (trainer.model, trainer.average):
        model.register_buffer("seen", torch.zeros((), device=device))
        assert any(each is model.seen for each in trainer.tensors_of_a_step())


def test_a_step_that_cannot_be_captured_falls_back_with_one_line(device, tmp_path, monkeypatch, capsys):
    def fail(function, generators):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(training.captured_step, "capture", fail)
    trainer = make(device, tmp_path, epochs=1)
    trainer.train()
    assert capsys.readouterr().out.count("[!] The training step cannot be made a CUDA graph (operation not") == 1
    assert trainer.progress.epoch == 1


def test_what_a_graph_cannot_hold_is_not_captured(device, tmp_path):
    trainer = make(device, tmp_path, compile="False")
    trainer.compile()
    assert trainer.captured_step is None


@pytest.mark.parametrize("settings", [
    {"canvas_size": 34, "num_clutter": 2, "num_patches": 3, "glimpse_scale": 2},
    {"core": "lstm", "policy": "oracle", "canvas_size": 40, "optimizer": "adam"},
    {"first_location": "centre", "weight_decay": 0.1, "policy": "scan"},
])  # fmt: skip
def test_nothing_in_a_step_waits_for_the_gpu_or_comes_from_the_cpu(settings, tmp_path):
    script, environment = str(ROOT / "tests" / "pretended_gpu.py"), {**os.environ, "PYTHONPATH": str(ROOT)}
    step = command(script, json.dumps({**settings, "ckpt_dir": str(tmp_path)}), env=environment)
    assert (step.returncode, step.stdout.strip()) == (0, "cuda"), step.stderr
