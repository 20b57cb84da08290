"""`asr-doge process`: a corpus to manifests."""

from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.processing import process_corpus


def run(config: ProcessConfig) -> int:
    """Run the verb; returns the exit code."""
    print("\n".join(process_corpus(config).lines()))
    return 0
