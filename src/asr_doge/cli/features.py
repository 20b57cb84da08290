"""`asr-doge features`: run the frozen encoder once over processed speech."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.data.manifest import manifests_in, read_manifest
from asr_doge.errors import ConfigError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import FeaturesReport, compute_features
from asr_doge.scaling.configuration import FeaturesJobConfig

DECODE_MEMORY = 2_000_000_000
"""Bytes that decoding one recording may take on a cluster."""
FEWEST_IN_PART = 4
"""Utterances in a part on average, at least: one of which not one can be read stops the job."""


def run(config: FeaturesJobConfig) -> int:
    """Run the command; returns the exit code."""
    reports = _on_ray(config) if config.engine == "ray" else [compute_features(config)]
    failed = [line for report in reports for line in report.failed]
    for line in failed:
        print(f"left out: {line}", file=sys.stderr)
    encoded, kept = sum(report.encoded for report in reports), sum(report.kept for report in reports)
    print(f"{encoded} utterances encoded, {kept} kept, {len(failed)} unreadable: {reports[0].folder}")
    return 0


def _on_ray(config: FeaturesJobConfig) -> list[FeaturesReport]:
    from asr_doge.scaling.command_parts import part_names, run_parts  # here, since Ray is an extra

    if config.shard != FeaturesConfig.shard:
        raise ConfigError("--shard divides the work without a cluster: leave it or --engine ray out")
    encoder = config.speech_encoder if Path(config.speech_encoder).is_dir() else None
    paths = [config.data_dir, config.output_dir, encoder]
    count = sum(len(read_manifest(manifest)) for manifest in manifests_in(config.data_dir))
    parts = part_names(config, max(count // FEWEST_IN_PART, 1))
    return run_parts(partial(_load, config), config, parts, "features", paths)


def _load(config: FeaturesConfig) -> Callable[[str], FeaturesReport]:
    """Return the function that computes a part; its decoder is a process of its own, whose crash ends no worker."""
    decoder = FileDecoder(DECODE_MEMORY)
    return lambda part: compute_features(replace(config, shard=part), decoder.read_clip)
