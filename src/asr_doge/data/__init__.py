"""Corpora, manifests, and the format of the feature cache.

Promises: each step leaves a file that other tools can read, written whole or not at all. It knows audio and text; it
knows no models and runs no encoder. `asr_doge.data.feature_cache` is imported by its own name, as it loads torch.
"""

from asr_doge.data.corpora import CORPORA, Corpus, SourceUtterance, find_corpus
from asr_doge.data.manifest import Utterance, read_manifest, write_manifest
from asr_doge.data.processing import ProcessConfig, ProcessReport, SplitReport, process_corpus

__all__ = [
    "CORPORA",
    "Corpus",
    "ProcessConfig",
    "ProcessReport",
    "SourceUtterance",
    "SplitReport",
    "Utterance",
    "find_corpus",
    "process_corpus",
    "read_manifest",
    "write_manifest",
]
