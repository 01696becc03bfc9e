"""Trains, continues and tests the Recurrent Attention Model (Mnih et al. 2014).

python main.py                     # train on MNIST
python main.py --resume=True       # go on with it
python main.py --is_train=False    # test the best validation model
"""

import sys

from config import Config, InputError, get_config


def main(config: Config):
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
    device = pick_device(config.use_gpu)
    checkpoint = load_checkpoint(config.checkpoint_path) if config.resume or not config.is_train else None
    if config.is_train:
        Trainer(config, get_train_valid_loader(config, device), device, checkpoint).train()
    else:
        test_loader = get_test_loader(config, spec_of(checkpoint, config.checkpoint_path), device)
        Trainer(config, test_loader, device, checkpoint).test()


def run(argv: list[str] | None = None) -> int:
    """`main` as a command: prints what the user can put right as one line, and gives the exit code."""
    try:
        config = get_config(argv)
        main(config)
    except InputError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"main.py: {error or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    return 0


if __name__ == "__main__":
    sys.exit(run())
