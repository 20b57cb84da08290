"""`asr-doge process`: a corpus to manifests."""

from functools import partial

from asr_doge.data.processing import process_corpus
from asr_doge.scaling.configuration import ProcessJobConfig


def run(config: ProcessJobConfig) -> int:
    """Run the command; returns the exit code."""
    engine = None
    if config.engine == "ray":
        from asr_doge.scaling.corpus_validation import validate_on_ray  # here, since Ray is an extra

        engine = partial(validate_on_ray, config)
    print("\n".join(process_corpus(config, engine).lines()))
    return 0
