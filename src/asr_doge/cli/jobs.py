"""`asr-doge transcribe --engine …`: run or plan a job, and print its failures and its summary."""

import json
import sys
from dataclasses import asdict

from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.jobs import plan_transcribe_job, run_transcribe_job

_MOST_NAMED = 20
"""Failures that are printed; the summary and the shards name all."""


def run_job(config: TranscribeJobConfig) -> int:
    """Run the job, or plan it; returns 2 if a recording could not be transcribed."""
    if config.plan:
        print("\n".join(plan_transcribe_job(config).lines()))
        return 0
    summary = run_transcribe_job(config)
    for name, reason in summary.failed[:_MOST_NAMED]:
        print(f"error: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    if len(summary.failed) > _MOST_NAMED:
        print(f"… and {len(summary.failed) - _MOST_NAMED} more, in {config.output_dir}", file=sys.stderr)
    for reason in summary.left:
        print(f"error: not done, and to be tried again by the same command: {reason}", file=sys.stderr)
    print(json.dumps(asdict(summary) | {"failed": len(summary.failed), "left": len(summary.left)}))
    return 2 if summary.failed or summary.incomplete or summary.left else 0
