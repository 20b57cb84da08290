"""`asr-doge features`: run the frozen encoder once over processed speech."""

import sys

from asr_doge.cli.console import quiet_libraries
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features


def run(config: FeaturesConfig) -> int:
    """Run the verb; returns the exit code."""
    quiet_libraries()
    report = compute_features(config)
    for line in report.failed:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{report.encoded} utterances encoded, {report.kept} kept, {len(report.failed)} unreadable: {report.folder}")
    return 0
