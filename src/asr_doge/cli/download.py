"""`asr-doge download`: corpora from their publishers."""

import sys
from collections import Counter

from asr_doge.data.configuration import DownloadConfig
from asr_doge.data.download import Download, download, list_corpora


def run(config: DownloadConfig) -> int:
    """Run the verb; returns the exit code."""
    if config.list:
        print("\n".join(list_corpora()))
        return 0
    outcomes: Counter[str] = Counter()
    for result in download(config):
        outcomes[result.outcome] += 1
        _print(result)
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    return 2 if outcomes["failed"] else 0


def _print(result: Download) -> None:
    if result.outcome == "failed":
        print(f"error: {result.error}", file=sys.stderr)
    else:
        print(f"{result.corpus} {result.split}: {result.outcome}, {result.folder}", flush=True)
