"""Several processes train one model as one process would: the same losses, exact counts, one writer, one last word."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, ForkServer, metrics_of
from torch.distributed import TCPStore

from config import get_config, make_config
from data_loader import describe
from images.batches import Loader
from images.canvas import draw_canvases
from images.datasets import Examples
from model import Rollout
from training.checkpoint import load_checkpoint
from training.distributed import Shard, World
from training.evaluation import evaluate
from training.fixed_policies import fixed_locations

TERMS = ("loss", "loss_action", "loss_baseline", "loss_reinforce")
# All that a step draws, and batches that leave the last one uneven: 1,295 training images are 20 * 64 + 15. Muon makes
# directions of hardly any gradient as long as all others, and so what rounding does to them.
SETTINGS = [
    "--epochs=3",
    "--compile=False",
    "--precision=float32",
    "--optimizer=adam",
    "--canvas_size=34",
    "--num_clutter=2",
    "--clip_grad_norm=1",
]


class Member(World):
    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


def start(server: ForkServer, size: int, *flags: str) -> list[int]:
    """The process numbers of a team of this size, whose members get the variables that torchrun sets."""
    server.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
    return [server.start(*flags, **variables, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)]


def wait(server: ForkServer, members: list[int]) -> list[int]:
    return [server.wait(member) for member in members]


def ours(output: str) -> list[str]:
    """The lines that the project prints; some versions of torch add one of Gloo's for each process."""
    return [line for line in output.splitlines() if "connected peer ranks" not in line]


def assert_same_curve(a, b):
    """Losses that differ by rounding alone, over three epochs, and counts that do not differ at all."""
    assert [line["epoch"] for line in metrics_of(a)] == [line["epoch"] for line in metrics_of(b)] == [1, 2, 3]
    for one, other in zip(metrics_of(a), metrics_of(b), strict=True):
        assert one["lr"] == other["lr"]
        for part in ("train", "valid"):
            assert one[part]["correct"] == other[part]["correct"]
            assert [one[part][term] for term in TERMS] == pytest.approx(
                [other[part][term] for term in TERMS], rel=1e-4, abs=1e-5
            )
    for name in ("last.pt", "best.pt"):
        weights, others = (load_checkpoint(config.run_dir / name)["model_state"] for config in (a, b))
        assert weights.keys() == others.keys()
        for key in weights:
            torch.testing.assert_close(weights[key], others[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shards_cover_a_batch_once_and_weight_its_mean_right(size):
    for count in range(1, 20):
        values = torch.rand(count, dtype=torch.float64)
        shards = [Member(rank, size).shard(count) for rank in range(size)]
        counted = [values[shard.part][: shard.images] for shard in shards]
        assert torch.equal(torch.cat(counted), values)
        assert max(map(len, counted)) - min(map(len, counted)) <= 1
        assert all(len(values[shard.part]) > 0 for shard in shards)  # each takes part in the step
        means = torch.stack([values[shard.part].mean() * shard.weight for shard in shards])
        torch.testing.assert_close(means.mean(), values.mean())
    assert World().shard(7) == Shard(slice(0, 7), 7, 1.0)


def test_a_part_of_the_canvases_equals_that_part_of_all():
    pool = torch.randint(256, (20, 1, 9, 9), dtype=torch.uint8)

    def draw(images, **shard):
        generator = torch.Generator().manual_seed(3)
        return draw_canvases(images, pool, size=16, num_clutter=3, generator=generator, **shard).images

    part = slice(2, 5)
    assert torch.equal(draw(pool[:8][part], shard=(part, 8)), draw(pool[:8])[part])


def test_a_part_of_random_paths_equals_that_part_of_all():
    config, starts, part = make_config(policy="random", num_glimpses=3), torch.zeros(8, 2), slice(2, 5)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    whole = fixed_locations(config, starts, starts, generators[0])
    assert torch.equal(fixed_locations(config, starts[part], starts[part], generators[1], (part, 8)), whole[part])


def test_an_image_that_only_fills_a_shard_is_not_counted():
    """Five images in batches of three and two, for three processes and a model that is always right."""

    class Right(torch.nn.Module):
        def forward(self, images, locations):
            none = torch.zeros(len(images), 0)
            return Rollout(torch.tensor([[0.0, -9.0]]).expand(len(images), 2), locations[:, None], none, none, none)

    def correct(rank):
        examples = Examples(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
        loader = Loader(examples, batch_size=3, device=torch.device("cpu"))
        loader.described_by(describe(loader, ["a", "b"])).shard_with(Member(rank, 3))
        return evaluate(Right(), loader, make_config()).metrics.correct

    assert sum(map(correct, range(3))) == 5


def test_torchrun_trains_as_one_process_of_twice_the_batch_does(flags, run):
    one = run(*SETTINGS, "--batch_size=64", "--run_name=one")
    two = [*flags, *SETTINGS, "--batch_size=32", "--run_name=two"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "main.py"]
    result = subprocess.run([*launch, *two], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert_same_curve(one, get_config(two))
    lines = ours(result.stdout)
    assert [line.split(" - ")[0] for line in lines[2:-1]] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    files = {f"glimpses_{epoch}.npz" for epoch in (1, 2, 3)} | {"curves.png", ".run"}
    assert {path.name for path in get_config(two).run_plots.iterdir()} == files


def test_muon_steps_two_processes_as_one_of_twice_the_batch(server, flags, run):
    settings = [*SETTINGS, "--optimizer=muon"]
    one = run(*settings, "--batch_size=64", "--run_name=one")
    two = [*flags, *settings, "--batch_size=32", "--run_name=two"]
    assert wait(server, start(server, 2, *two)) == [0, 0]
    curves = [
        [line[part]["loss_action"] for line in metrics_of(config) for part in ("train", "valid")]
        for config in (one, get_config(two))
    ]
    assert curves[0] == pytest.approx(curves[1], rel=5e-3)  # a single process of half the batch is off by 7e-2


@pytest.mark.parametrize("more", [["--policy=oracle"], ["--num_glimpses=1", "--first_location=learned"]])
def test_weights_that_no_rollout_uses_hold_no_process_up(server, flags, run, more):
    one = run(*SETTINGS, *more, "--batch_size=64", "--run_name=one")
    two = [*flags, *SETTINGS, *more, "--batch_size=32", "--run_name=two"]
    assert wait(server, start(server, 2, *two)) == [0, 0]
    assert_same_curve(one, get_config(two))


def test_counts_are_exact_where_a_batch_has_fewer_images_than_there_are_processes(server, flags, run, capsys):
    """1,295 training images are 1,293 and 2, the 143 of validation 6 * 21 + 17, the 359 of the test 17 * 21 + 2."""
    one = run(*SETTINGS, "--batch_size=1293", "--run_name=one")
    three = [*flags, *SETTINGS, "--batch_size=431", "--run_name=three"]
    assert wait(server, start(server, 3, *three)) == [0, 0, 0]
    assert_same_curve(one, get_config(three))
    run("--run_name=three", "--is_train=False")
    alone = capsys.readouterr().out.splitlines()[-1]
    tests = [*flags, "--run_name=three", "--is_train=False", "--batch_size=7"]
    assert wait(server, start(server, 3, *tests)) == [0, 0, 0]
    assert server.log.read_text().count("Test Acc") == 1
    assert server.log.read_text().splitlines()[-1] == alone


def test_a_signal_to_one_stops_all_after_one_step_and_another_number_resumes(server, flags, run):
    settings = [*SETTINGS, "--init_lr=5e-4"]  # at four times the rate, rounding grows past the tolerance on some CPUs
    straight = run(*settings, "--batch_size=16", "--run_name=straight")
    parts = [*flags, *settings, "--run_name=parts"]
    members = start(server, 2, *parts, "--batch_size=8")
    config = get_config([*parts, "--batch_size=8"])
    while not (config.run_dir / "last.pt").exists():  # the first epoch is done
        time.sleep(0.005)
    os.kill(members[1], signal.SIGTERM)
    assert wait(server, members) == [128 + signal.SIGTERM] * 2
    stopped = load_checkpoint(config.run_dir / "last.pt")
    assert (stopped["epoch"], stopped["step"]) >= (1, 0) and stopped["processes"] == 2
    assert server.log.read_text().count("--resume=True continues from there") == 1
    assert run("--resume=True", "--run_name=parts").model.num_glimpses == straight.model.num_glimpses
    assert load_checkpoint(config.run_dir / "last.pt")["config"]["batch_size"] == 16
    assert get_config([*parts, "--batch_size=8", "--resume=auto"]).call.resume  # the command that began it still fits
    assert_same_curve(straight, config)
    assert wait(server, start(server, 3, *flags, "--resume=True", "--run_name=parts")) == [1] * 3
    assert "takes 16 images a step, which 3 processes cannot share" in server.log.read_text()


@pytest.mark.parametrize("wrong, why", [("--std=0", "std=0.0 is not allowed"), ("--epochs=1", "holds a run already")])
def test_an_error_of_one_ends_all_with_one_line(server, flags, run, wrong, why):
    before = run("--epochs=1")
    saved = (before.run_dir / "last.pt").read_bytes()
    assert wait(server, start(server, 2, *flags, wrong)) == [1, 1]
    [line] = [line for line in ours(server.log.read_text()) if not line.startswith("[*]")]
    assert why in line
    assert (before.run_dir / "last.pt").read_bytes() == saved


def test_no_process_waits_for_a_dead_one(server, flags):
    members = start(server, 2, *flags, "--epochs=1000", "--compile=False")
    server.wait_for("Epoch 1/1000")
    os.kill(members[1], signal.SIGKILL)
    assert wait(server, members) == [1, -signal.SIGKILL]


def test_two_processes_play_as_one_of_twice_the_batch(server, flags, run):
    """Games of 5x5; 100 an epoch leave the last batch with 36."""
    game = ["--task=catch", "--grid_size=5", "--num_glimpses=4", "--games_per_epoch=100", "--valid_size=0.5"]
    settings = [*SETTINGS[:-3], *game, "--clip_grad_norm=1"]
    one = run(*settings, "--batch_size=64", "--run_name=one")
    two = [*flags, *settings, "--batch_size=32", "--run_name=two"]
    assert wait(server, start(server, 2, *two)) == [0, 0]
    assert_same_curve(one, get_config(two))
