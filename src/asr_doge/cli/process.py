"""`asr-doge process`: a corpus to manifests."""

from collections.abc import Sequence

from asr_doge.cli.arguments import parse_config
from asr_doge.data.processing import ProcessConfig, process_corpus


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    example = "asr-doge process --dataset librispeech --data_dir ./data --output_dir ./processed"
    report = process_corpus(parse_config("process", ProcessConfig, arguments, example))
    print("\n".join(report.lines()))
    return 0
