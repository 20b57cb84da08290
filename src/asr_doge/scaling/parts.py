"""`features` on a Ray cluster: the parts that its `--shard i/n` makes, each by whichever worker is free.

Promises: the cache has the bytes that one process would write, since its files do not depend on who writes them; a part
whose worker dies is gone on with by another, and stops the job when it has ended `MOST_ATTEMPTS` workers. It knows
neither encoders nor the cache's format.
"""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from asr_doge.data.stores import is_url
from asr_doge.errors import ConfigError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.progress import progress_bar
from asr_doge.scaling.configuration import FeaturesJobConfig
from asr_doge.scaling.ray_engine import run_on_ray

if TYPE_CHECKING:  # it loads torch, which the driver does not need
    from asr_doge.inference.features import FeaturesReport

PARTS_PER_WORKER = 2
"""Parts for each worker, so that one that is slow or lost leaves less to the others."""
MOST_ATTEMPTS = 3


class FeaturesWorker:
    """Computes parts of the features.

    Args:
        config: of the verb.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        self._config = config

    def start(self) -> None:
        """Load nothing: each part loads the encoder."""

    def run(self, part: str) -> "FeaturesReport":
        """Compute a part, such as `2/8`."""
        from asr_doge.inference.features import compute_features

        return compute_features(replace(self._config, shard=part))

    def close(self) -> None:
        """Nothing is left to end."""


def compute_features_on_ray(config: FeaturesJobConfig) -> list["FeaturesReport"]:
    """Run the `features` verb on a cluster; returns the reports of its parts.

    Raises:
        ConfigError: settings that do not go together, or as in `run_on_ray`.
        ASRDogeError: as in `compute_features`.
    """
    if config.shard != FeaturesConfig.shard:
        raise ConfigError("--shard divides the work without a cluster: leave it or --engine ray out")
    plain = FeaturesConfig(**{one.name: getattr(config, one.name) for one in fields(FeaturesConfig)})
    count = PARTS_PER_WORKER * config.worker_range()[1]
    encoder = config.speech_encoder if Path(config.speech_encoder).is_dir() else None
    paths = [path for path in (config.data_dir, config.output_dir, encoder) if path is not None]
    is_relative = any(not is_url(path) and not Path(path).is_absolute() for path in paths)
    reports: list[FeaturesReport] = []
    with progress_bar(total=count, desc="features", unit="part") as bar:

        def on_report(report: "FeaturesReport") -> None:
            reports.append(report)
            bar.update()

        parts = [f"{part}/{count}" for part in range(1, count + 1)]
        folder = str(Path.cwd()) if is_relative else None
        run_on_ray(partial(FeaturesWorker, plain), parts, config, on_report, folder, MOST_ATTEMPTS)
    return reports
