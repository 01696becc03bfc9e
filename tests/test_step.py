"""Every fast path of the training step ends at the weights of the plain one."""

import logging
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from helpers import command

from config import Config, make_config
from model import RecurrentAttention, draw_first_locations, hybrid_loss
from training.optim import make_optimizer
from training.step import Objective, compiler_arguments, should_compile
from utils import has_bfloat16

CONFIG = make_config(batch_size=32, num_glimpses=4, patch_size=8, num_patches=2, glimpse_scale=2)
STEPS = 20
# Of the way that the weights went. Rounding moves some glimpses by a pixel: 0.03 to 0.2 were seen at several rates, and
# 0.44 where the rate was wrong by a third.
BFLOAT16_BOUND = 0.25


def compiled_objective(model: RecurrentAttention, config: Config, device: str = "cpu") -> Objective:
    """With its step compiled, unless the settings do without."""
    objective = Objective(model, config.training, config.data.batch_size)
    if config.training.compile == "True":
        objective.compile(*example_of(model))
        assert objective.full_batch_losses != objective.losses  # nothing failed
    return objective


def example_of(model: RecurrentAttention) -> tuple[torch.Tensor, ...]:
    """Images, labels, first locations and noise, of CONFIG's batch."""
    device, count = model.std.device, CONFIG.data.batch_size
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    return images, labels, torch.zeros(count, 2, device=device), torch.zeros(3, count, 2, device=device)


def train(device: str = "cpu", **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights in one row, before and after 20 steps on the same batches."""
    config = CONFIG.replace(**settings)
    torch.manual_seed(0)
    model = RecurrentAttention(**config.model_args(1, 10)).normalize_by([0.5], [0.25]).to(device)
    names = list(model.state_dict())
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    objective, optimizer = compiled_objective(model, config, device), make_optimizer(config.training, model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        labels = torch.randint(10, (32,), generator=generator)
        images = torch.randn(32, 1, 28, 28, generator=generator) / 4 + (labels / 10)[:, None, None, None]
        images = (64 * images + 128).clamp(0, 255).to(torch.uint8)
        starts = draw_first_locations("random", 32, torch.device("cpu"), generator)
        noise = torch.randn(3, 32, 2, generator=generator)
        losses = objective(*(tensor.to(device) for tensor in (images, labels, starts, noise)))
        assert losses.total.dtype == torch.float32
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert list(model.state_dict()) == names  # clean of what compiling wraps a model in
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    return before, after


# Muon makes directions of hardly any gradient as long as all others, and so what rounding does to them.
PLAIN = {"compile": "False", "precision": "float32", "optimizer": "adam"}
# Adam divides each gradient by its own size, so that weights of hardly any gradient go where rounding sends them: in
# bfloat16 only steps proportional to the gradient can be checked.
SGD = {"optimizer": "sgd", "init_lr": 0.02}


@pytest.mark.parametrize(("reward", "another"), [("correct", "probability"), ("probability", "correct")])
def test_the_losses_are_of_the_reward_and_the_weight_that_the_settings_name(reward, another):
    config = CONFIG.replace(reward=reward, reinforce_weight=0.7, precision="float32")
    torch.manual_seed(0)
    model = RecurrentAttention(**config.model_args(1, 10))
    images, labels, starts, noise = example_of(model)
    rollout = model(images, starts, noise)
    expected = hybrid_loss(rollout, labels, reinforce_weight=0.7, reward=reward)
    other = hybrid_loss(rollout, labels, reinforce_weight=0.7, reward=another)
    losses = Objective(model, config.training, config.data.batch_size)(images, labels, starts, noise)
    torch.testing.assert_close(losses, expected)
    assert not torch.isclose(losses.total, other.total)


@pytest.fixture(scope="module")
def plain():
    return train(**PLAIN)


@pytest.fixture(scope="module")
def plain_sgd():
    return train(**{**PLAIN, **SGD})


def distance(run, plain) -> float:
    """How far apart two runs ended, as a fraction of the way that the plain one went."""
    (_, after), (before, expected) = run, plain
    return ((after - expected).norm() / (expected - before).norm()).item()


def test_compiled_float32_steps_equal_plain_ones_to_rounding(plain):
    assert distance(train(**{**PLAIN, "compile": "True"}), plain) < 0.001


@pytest.mark.slow
def test_compiled_steps_in_which_reinforce_trains_the_core_equal_plain_ones_to_rounding():
    settings = {**PLAIN, "reinforce_core": True, "reinforce_weight": 1.0}
    assert distance(train(**{**settings, "compile": "True"}), train(**settings)) < 0.001


@pytest.mark.parametrize("compile", ["False", pytest.param("True", marks=pytest.mark.slow)])
def test_bfloat16_steps_go_the_way_of_the_plain_ones(compile, plain_sgd):
    off = distance(train(compile=compile, precision="bfloat16", **SGD), plain_sgd)
    assert 0 < off < BFLOAT16_BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["False", "True"])
@pytest.mark.parametrize("precision, bound", [("float32", 0.01), ("bfloat16", BFLOAT16_BOUND)])
def test_steps_on_a_gpu_go_the_way_of_the_plain_ones(compile, precision, bound, plain_sgd):
    assert distance(train("cuda", compile=compile, precision=precision, **SGD), plain_sgd) < bound


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_compiled_step_takes_the_noise_it_is_given(device):
    """A captured step that replayed the noise it was captured with would explore one path for ever."""
    config = CONFIG.replace(compile="True", precision="float32")
    model = RecurrentAttention(**config.model_args(1, 10)).to(device)
    objective = compiled_objective(model, config, device)
    batch = torch.randn(32, 1, 28, 28, device=device), torch.zeros(32, dtype=torch.long, device=device)
    starts = torch.zeros(32, 2, device=device)
    noise = torch.randn(3, 32, 2, device=device), torch.randn(3, 32, 2, device=device)
    first, second, again = (objective.full_batch_losses(*batch, starts, n).reinforce.item() for n in (*noise, noise[0]))
    assert first == again != second


def test_each_of_many_models_in_one_process_is_compiled(monkeypatch):
    """As the trials of a search, one after the other."""
    compilations = []

    def compile_nothing(graph, example):
        compilations.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(
        "training.step.compiler_arguments", lambda *_: {"backend": lambda *graph: compile_nothing(*graph)}
    )
    for _ in range(10):
        compiled_objective(RecurrentAttention(**CONFIG.model_args(1, 10)), CONFIG.replace(compile="True"))
    assert len(compilations) == 10


def test_a_missing_compiler_is_named_and_done_without(run, capsys):
    torch.compiler.reset()
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, torch.compiler.config.patch(force_disable_caches=True):
        run("--epochs=1", "--compile=True")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[!]")]
    assert "Compiling failed (InvalidCxxCompiler: No working C++ compiler found" in line and "--compile=False" in line


def test_a_compiler_that_fails_at_a_later_step_is_done_without(monkeypatch, capsys):
    """As when a step must be compiled anew and the disk is full by then."""
    calls = []

    def compile(function, **options):
        def compiled(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise torch._dynamo.exc.TorchDynamoException from OSError("no space left on device")
            return function(*arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    _, after = train(**{**PLAIN, "compile": "True"})
    assert torch.equal(after, train(**PLAIN)[1])
    assert len(calls) == 3  # the one that compiled, the first step, the second
    assert capsys.readouterr().out.count("[!] Compiling failed (OSError: no space left on device)") == 1


def test_a_bug_of_our_own_is_not_blamed_on_the_compiler(monkeypatch, capsys):
    def join_sums(rewriting):
        raise KeyError("val")

    monkeypatch.setattr("training.fuse_matmuls.Rewriting.join_sums", join_sums)
    torch.compiler.reset()
    model = RecurrentAttention(**CONFIG.model_args(1, 10))
    objective = Objective(model, CONFIG.training, CONFIG.data.batch_size)
    with torch.compiler.config.patch(force_disable_caches=True):
        objective.compile(*example_of(model))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[!]")]
    assert "a bug in training/fuse_matmuls.py (KeyError: 'val'): please report it" in line
    assert objective(*example_of(model)).total.isfinite()


def test_a_compiled_step_that_computes_something_else_is_not_used(monkeypatch, capsys):
    def compile(function, **options):
        def compiled(*arguments):
            losses = function(*arguments)
            return losses._replace(total=losses.total * torch.nan)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    model = RecurrentAttention(**CONFIG.model_args(1, 10))
    objective = Objective(model, CONFIG.training, CONFIG.data.batch_size)
    objective.compile(*example_of(model))
    assert objective.full_batch_losses == objective.losses
    assert "ArithmeticError: the compiled loss is nan, the plain one" in capsys.readouterr().out


@pytest.mark.slow
def test_an_lstm_that_learns_where_to_begin_trains_compiled(run, capsys):
    """Its compiled loss was NaN in bfloat16."""
    sizes = ["--core=lstm", "--num_glimpses=2", "--num_patches=2", "--glimpse_scale=2", "--first_location=learned"]
    run("--epochs=1", "--compile=True", "--precision=bfloat16", *sizes)
    assert "[!]" not in capsys.readouterr().out


def test_memory_that_is_full_while_compiling_is_not_a_missing_compiler(monkeypatch):
    def compile(function, **options):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(torch, "compile", compile)
    model = RecurrentAttention(**CONFIG.model_args(1, 10))
    with pytest.raises(torch.OutOfMemoryError):
        Objective(model, CONFIG.training, CONFIG.data.batch_size).compile(*example_of(model))


def test_no_bfloat16_where_the_device_has_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert has_bfloat16(torch.device("cpu"))
    assert not has_bfloat16(torch.device("mps"))


def test_a_step_is_compiled_where_that_pays_or_is_asked_for():
    cpu = torch.device("cpu")
    assert should_compile("auto", cpu, steps=6_000) and not should_compile("auto", cpu, steps=5_999)
    assert not should_compile("auto", torch.device("mps"), steps=10**6)
    assert should_compile("auto", torch.device("cuda"), steps=30_000)  # without it the step is captured, too
    assert not should_compile("auto", torch.device("cuda"), steps=29_999)
    assert should_compile("True", cpu, steps=1) and not should_compile("False", cpu, steps=10**6)


def test_a_compilation_for_a_cpu_misses_no_cuda(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    said = []
    recorder = logging.Handler()
    monkeypatch.setattr(recorder, "emit", said.append)
    monkeypatch.setattr(cpp_extension.logger, "handlers", [recorder])
    cpp_extension.logger.setLevel(logging.WARNING)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpp_extension._find_cuda_home()
    assert len(said) == 1
    compiler_arguments(torch.device("cpu"), captured=False)
    cpp_extension._find_cuda_home()
    assert len(said) == 1


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, whose memory is left as it is")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages of 2 MB fault seldom")
def test_a_trainer_has_freed_memory_kept_for_the_next_step():
    """Or a block of 40 MB would cost 9,765 page faults each time. In a process whose memory no other test arranged."""
    script = """
import resource, sys, torch
from config import make_config
from helpers import CPU, loaders_of
from trainer import Trainer

if sys.argv[1] == "trainer":
    config = make_config(task="digits")
    Trainer(config, loaders_of(config), CPU)
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    faults = {who: int(command("-c", script, who, env=paths).stdout) for who in ["nobody", "trainer"]}
    # A block that does not fit where the one before it was costs its pages once more.
    assert faults["nobody"] > 90_000 and faults["trainer"] < 20_000
