"""The folder for models that were fetched or converted: `$ASR_DOGE_CACHE`, by default in the user's cache."""

import os
from pathlib import Path

CACHE_VARIABLE = "ASR_DOGE_CACHE"


def cache_folder() -> Path:
    """The folder; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(cache) / "asr-doge")
