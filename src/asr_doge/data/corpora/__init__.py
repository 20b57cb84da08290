"""The corpora: a registry of small declarations.

Promises: a corpus from `find_corpus(name)` lists the splits of a folder, lists a split's recordings with their
transcripts, and names what can be downloaded. To add a corpus, write its two functions and declare it in `published.py`
or `layouts.py`.
"""

from pathlib import Path

from asr_doge.data.corpora.base import (
    ID_USED_TWICE,
    MISSING_AUDIO,
    Archive,
    Corpus,
    Listed,
    Rejected,
    SourceUtterance,
)
from asr_doge.data.corpora.layouts import LAYOUTS, manifest_of_split
from asr_doge.data.corpora.lhotse_cuts import lhotse_corpus
from asr_doge.data.corpora.published import PUBLISHED
from asr_doge.errors import ConfigError

CORPORA: dict[str, Corpus] = {**PUBLISHED, **LAYOUTS, "lhotse": lhotse_corpus(Path("audio"))}
"""Every corpus and layout by its name on the command line."""


def find_corpus(name: str, clips: Path | None = None) -> Corpus:
    """The declaration of a corpus.

    Args:
        name: on the command line.
        clips: the folder for recordings that are no files of their own, of which only `lhotse` has any.

    Raises:
        ConfigError: no corpus of that name.
    """
    if name not in CORPORA:
        raise ConfigError(f"--dataset {name} is unknown: choose from {', '.join(CORPORA)}")
    return lhotse_corpus(clips) if name == "lhotse" and clips is not None else CORPORA[name]


__all__ = [
    "CORPORA",
    "ID_USED_TWICE",
    "MISSING_AUDIO",
    "PUBLISHED",
    "Archive",
    "Corpus",
    "Listed",
    "Rejected",
    "SourceUtterance",
    "find_corpus",
    "manifest_of_split",
]
