"""`asr-doge features`: run the frozen encoder once over processed speech."""

import sys
from collections.abc import Sequence

from asr_doge.cli.arguments import parse_config
from asr_doge.cli.console import quiet_libraries
from asr_doge.inference.features import FeaturesConfig, compute_features


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    example = "asr-doge features --data_dir ./processed --speech_encoder nano/encoder"
    config = parse_config("features", FeaturesConfig, arguments, example)
    quiet_libraries()
    report = compute_features(config)
    for line in report.failed:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{report.encoded} utterances encoded, {report.kept} kept, {len(report.failed)} unreadable: {report.folder}")
    return 0
