"""Trains, resumes and tests the Recurrent Attention Model (Mnih et al. 2014).

    python main.py                     # train on MNIST
    python main.py --resume            # continue
    python main.py --is_train=False    # test the best validation model

`torchrun --nproc_per_node=2 main.py` does each of these with two processes, with a GPU for each if there are any.
"""

import sys

from config import Config, asked_for, config_of, get_config
from training.cli import InputError, as_input_errors, printable, steady_process
from training.distributed import ALONE, World, join, keep_batch


def main(config: Config, world: World = ALONE):
    """Trains or tests, as the settings say.

    Raises:
        InputError: a file, a folder or a setting does not fit.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from data_loader import get_test_loader, get_train_valid_loader, save_samples
    from images.batches import spec_of
    from trainer import Trainer
    from training.checkpoint import load_checkpoint
    from training.distributed import pick_device
    from training.run_folder import open_run
    from utils import seed_everything
    from viz.reports import open_reports

    call, seed = config.call, config.training.random_seed
    seed_everything(seed)
    device = pick_device(config.machine.use_gpu, world)
    if not call.is_train:
        checkpoint = load_checkpoint(config.checkpoint_path)
        spec = spec_of(checkpoint, config.checkpoint_path)
        with world.main_first():
            test_loader = get_test_loader(config.data, seed, spec, device, world)
        Trainer(config, test_loader, device, checkpoint).test()
        return

    checkpoint, begun = None, config
    if call.resume:
        checkpoint = load_checkpoint(config.checkpoint_path, to_resume=True)
        config = keep_batch(config, checkpoint, world.size)
    with world.main_first():
        loaders = get_train_valid_loader(config.data, seed, device, world, checkpoint, call.accept_changes)
    trainer = Trainer(config, loaders, device, checkpoint)
    with world.main_only(open_run(begun, device, trainer.progress.epoch, trainer.progress.step)):
        if call.show_sample and world.is_main:
            save_samples(loaders[0], config.run_plots / "samples.png")
        with open_reports(config, trainer) as reports:
            trainer.train(on_epoch=reports)


def configure(argv: list[str] | None) -> Config:
    """The settings of a call; those of a --checkpoint=, and of a run without params.json, are read from the checkpoint.

    Raises:
        InputError, SystemExit: as `get_config`.
    """
    asked = asked_for(argv)
    known = asked.params_path.exists() and not asked.call.checkpoint
    if known or not asked.has_begun or {"--help", "-h"} & set(sys.argv if argv is None else argv):
        return get_config(argv)
    from training.checkpoint import load_checkpoint

    path = asked.checkpoint_path
    return get_config(argv, saved=config_of(load_checkpoint(path)["config"], path))


def run(argv: list[str] | None = None) -> int:
    """`main` as a command: prints what the user can fix as one line, and returns the exit code."""
    with join() as world:
        try:
            with as_input_errors():
                with world.main_first():
                    config = configure(argv)
                with steady_process():
                    main(config, world)
            return 0
        except InputError as error:
            world.print_reason(printable(f"main.py: {error}"))
        except KeyboardInterrupt as error:
            world.print_reason(f"main.py: {str(error) or 'interrupted'}")
            return getattr(error, "exit_code", 130)
    return 1


if __name__ == "__main__":
    sys.exit(run())
