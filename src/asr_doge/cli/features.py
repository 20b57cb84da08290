"""`asr-doge features`: run the frozen encoder once over processed speech."""

import sys

from asr_doge.cli.console import quiet_libraries
from asr_doge.inference.features import compute_features
from asr_doge.scaling.configuration import FeaturesJobConfig


def run(config: FeaturesJobConfig) -> int:
    """Run the verb; returns the exit code."""
    quiet_libraries()
    if config.engine == "ray":
        from asr_doge.scaling.parts import compute_features_on_ray  # here, since Ray is an extra

        reports = compute_features_on_ray(config)
    else:
        reports = [compute_features(config)]
    failed = [line for report in reports for line in report.failed]
    for line in failed:
        print(f"left out: {line}", file=sys.stderr)
    encoded, kept = sum(report.encoded for report in reports), sum(report.kept for report in reports)
    print(f"{encoded} utterances encoded, {kept} kept, {len(failed)} unreadable: {reports[0].folder}")
    return 0
