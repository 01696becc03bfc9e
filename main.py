"""Trains, continues and tests the Recurrent Attention Model (Mnih et al. 2014).

python main.py                     # train on MNIST
python main.py --resume=True       # go on with it
python main.py --is_train=False    # test the best validation model

torchrun --nproc_per_node=2 main.py does each of these with two processes, a GPU for each where there are any.
"""

import sys

from config import Config, InputError, get_config
from distributed import ALONE, World, join, keep_batch
from flags import refusals_told


def main(config: Config, world: World = ALONE):
    """Trains or tests, as the settings say.

    Raises:
        InputError: a file, a folder or a setting does not fit.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from data_loader import get_test_loader, get_train_valid_loader, spec_of
    from runs import load_checkpoint
    from trainer import Trainer
    from utils import pick_device, seed_everything

    seed_everything(config.random_seed)
    device = pick_device(config.use_gpu, world)
    checkpoint = load_checkpoint(config.checkpoint_path) if config.resume or not config.is_train else None
    if config.is_train:
        config = keep_batch(config, checkpoint, world.size) if checkpoint else config
        with world.main_first():
            loaders = get_train_valid_loader(config, device, world)
        Trainer(config, loaders, device, checkpoint).train()
    else:
        spec = spec_of(checkpoint, config.checkpoint_path)
        with world.main_first():
            test_loader = get_test_loader(config, spec, device, world)
        Trainer(config, test_loader, device, checkpoint).test()


def run(argv: list[str] | None = None) -> int:
    """`main` as a command: prints what the user can put right as one line, and gives the exit code."""
    with join() as world:
        try:
            with refusals_told():
                with world.main_first():
                    config = get_config(argv)
                main(config, world)
            return 0
        except InputError as error:
            world.last_words(f"main.py: {error}")
        except KeyboardInterrupt as error:
            world.last_words(f"main.py: {str(error) or 'interrupted'}")
            return getattr(error, "exit_code", 130)
    return 1


if __name__ == "__main__":
    sys.exit(run())
