"""Log to Weights & Biases, if requested; TensorBoard only has to be installed.

It logs nothing itself: transformers' callback does, to the run that is opened here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from asr_doge.errors import ConfigError, first_line
from asr_doge.training.configuration import TrainConfig


def uses_wandb(config: TrainConfig) -> bool:
    """Whether the run is logged to Weights & Biases."""
    return config.wandb_project is not None and not config.no_wandb


@contextmanager
def wandb_run(config: TrainConfig) -> Iterator[None]:
    """Open a run of Weights & Biases, to which transformers' callback then logs.

    Raises:
        ConfigError: nobody is logged in, or the project cannot be reached.
    """
    import wandb

    try:
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=config.wandb_run_name,
            config={"asr_doge": asdict(config)},
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"--wandb_project {config.wandb_project}: {first_line(error)}; log in by 'wandb login', set"
            " WANDB_MODE=offline, or give --no_wandb"
        ) from error
    with run:
        yield
