"""What only a GPU can show: it learns as the CPU does, its checkpoints serve both, its memory ends with one line."""

import os

import pytest
import torch
from helpers import CPU, loader_for_test, loaders_of, metrics_of
from test_step import PLAIN, example_of

import main
from config import Config, make_config
from model import RecurrentAttention, draw_first_locations
from trainer import Trainer
from training.checkpoint import load_checkpoint
from training.distributed import Team
from training.optim import make_optimizer
from training.step import Objective

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture
def config(tmp_path) -> Config:
    folders = {name: str(tmp_path / name) for name in ("ckpt_dir", "logs_dir", "plot_dir")}
    config = make_config(task="digits", hidden_size=32, num_glimpses=3, epochs=1, precision="float32", **folders)
    config.run_dir.mkdir(parents=True)
    return config


def losses_of_50_steps(device: torch.device) -> torch.Tensor:
    """(50, terms) on the same images and numbers, which the CPU draws."""
    config = make_config(batch_size=128, num_glimpses=4, **PLAIN)
    torch.manual_seed(0)
    model = RecurrentAttention(**config.model_args(1, 10)).normalize_by([0.5], [0.25]).to(device)
    objective, optimizer = Objective(model, config.training, 128), make_optimizer(config.training, model)
    generator, history = torch.Generator().manual_seed(0), []
    for _ in range(50):
        labels = torch.randint(10, (128,), generator=generator)
        images = torch.randint(20, (128, 1, 28, 28), generator=generator) + 20 * labels[:, None, None, None]
        starts = draw_first_locations("random", 128, CPU, generator)
        noise = torch.randn(3, 128, 2, generator=generator)
        batch = images.to(torch.uint8), labels, starts, noise
        losses = objective(*(tensor.to(device) for tensor in batch))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(torch.stack(losses).detach().cpu())
    return torch.stack(history)


def test_a_gpu_learns_as_the_cpu_does():
    there, here = losses_of_50_steps(CUDA), losses_of_50_steps(CPU)
    torch.testing.assert_close(there[:10, 1:3], here[:10, 1:3], rtol=2e-3, atol=2e-3)
    # A pixel's border that rounding crosses changes a glimpse, and what follows from it.
    torch.testing.assert_close(there[-10:, 1:3].mean(0), here[-10:, 1:3].mean(0), rtol=0.05, atol=0.01)
    assert here[-10:, 1].mean() < here[:10, 1].mean() / 2


def test_a_run_goes_from_gpu_to_cpu_and_back(config):
    torch.manual_seed(1)
    Trainer(config, loaders_of(config, CUDA), CUDA).train()
    for epochs, device in ((2, CPU), (3, CUDA)):
        longer = config.replace(epochs=epochs)
        checkpoint = load_checkpoint(config.run_dir / "last.pt", to_resume=True)
        Trainer(longer, loaders_of(longer, device), device, checkpoint).train()
    assert [epoch["epoch"] for epoch in metrics_of(config)] == [1, 2, 3]
    assert metrics_of(config)[-1]["train"]["loss_action"] < metrics_of(config)[0]["train"]["loss_action"]
    checkpoint = load_checkpoint(config.run_dir / "best.pt")
    test = config.replace(is_train=False)
    trainers = [Trainer(test, loader_for_test(test, checkpoint_spec(checkpoint), device), device, checkpoint)
                for device in (CPU, CUDA)]  # fmt: skip
    here, there = (trainer.evaluate(trainer.test_loader) for trainer in trainers)
    assert abs(here.correct - there.correct) <= 3 and there.loss == pytest.approx(here.loss, rel=0.01)


def checkpoint_spec(checkpoint: dict):
    from images.batches import spec_of

    return spec_of(checkpoint, "best.pt")


def test_memory_that_is_full_ends_with_one_line(config, capsys):
    folders = [f"--{name}={getattr(config.call, name)}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        code = main.run(["--task=digits", "--canvas_size=2000", "--batch_size=1000", "--overwrite=True", *folders])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "main.py" in line]
    assert code == 1 and "out of memory: choose smaller batches" in line


@pytest.mark.parametrize("compile", ["False", "True"])
def test_nccl_averages_the_gradients_of_a_process_by_itself(config, monkeypatch, compile):
    """As torchrun starts one, whose main.py does without; so many GPUs as two processes need are rarely at hand."""
    port = "29511" if compile == "True" else "29512"  # the two may run at once
    settings = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in settings.items():
        monkeypatch.setitem(os.environ, name, value)
    torch.manual_seed(1)
    alone = Trainer(config.replace(compile="False"), loaders_of(config, CUDA), CUDA)
    alone.train()
    team = Team()
    try:
        torch.manual_seed(1)
        loaders = [loader.shard_with(team) for loader in loaders_of(config, CUDA)]
        trainer = Trainer(config.replace(compile=compile), loaders, CUDA)
        assert type(trainer.shared_objective).__name__ == "DistributedDataParallel"
        trainer.train()
        team.barrier()
    finally:
        torch.distributed.destroy_process_group()
    for mine, other in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compile", ["auto", "True"])
def test_the_command_trains_resumes_and_tests_on_a_gpu(config, capsys, compile):
    flags = ["--task=digits", f"--compile={compile}"]
    flags += [f"--{name}={getattr(config.call, name)}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    assert main.run([*flags, "--epochs=3", "--stop_after_epoch=2", "--overwrite=True"]) == 0
    assert main.run([*flags, "--resume=True", "--stop_after_epoch=0"]) == 0
    assert main.run([*flags, "--is_train=False"]) == 0
    printed = capsys.readouterr()
    assert "[!]" not in printed.out and "Test Acc" in printed.out and not printed.err.count("main.py:")


def test_a_compiled_loss_equals_the_plain_one_on_a_gpu():
    config = make_config(batch_size=32, num_glimpses=4, **PLAIN)
    model = RecurrentAttention(**config.model_args(1, 10)).to(CUDA)
    objective = Objective(model, config.training, 32)
    batch = example_of(model)
    plain = objective(*batch).total.item()
    for captured in (True, False):
        objective.compile(*batch, captured=captured)
        assert objective.full_batch_losses != objective.losses
        assert objective(*batch).total.item() == pytest.approx(plain, rel=1e-4)
