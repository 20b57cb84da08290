"""Speech encoders that are fetched on first use: published models that `asr-doge download model` knows.

Promises: wherever a speech encoder is named, on the command line or in a checkpoint, such a model is found on this
machine or fetched: once, whole and checked, after one line that says what comes, from where, and how large it is.
Without a network the error is one line with the ways out. What is in the hub's cache already is used from there.
It does not know what the encoder is for.
"""

from pathlib import Path

from filelock import FileLock

from asr_doge.errors import CheckpointError
from asr_doge.models import gguf
from asr_doge.models.cache_folder import CACHE_VARIABLE, cache_folder
from asr_doge.models.checkpoints import Reference, find_model
from asr_doge.models.download import MODELS, cached_folder, download_models


def models_folder() -> Path:
    """The folder of fetched models."""
    return cache_folder() / "models"


def local_folder(name: str) -> Path | None:
    """The folder of a model of `MODELS` on this machine: fetched earlier, or in the hub's cache."""
    folder = models_folder() / name.rpartition("/")[2]
    return folder if folder.is_dir() else cached_folder(name)


def can_be_fetched(name: str | Path) -> bool:
    """Whether a name is that of a model of `MODELS`, and not of a folder."""
    return str(name) in MODELS and not Path(name).is_dir()


def find_or_fetch(name: str | Path, revision: str | None = None) -> Reference:
    """`find_model` for speech encoders: a model of `MODELS` is fetched unless it is on this machine.

    Raises:
        CheckpointError: it cannot be found; or cannot be fetched, and the message names the download, and the model
            that needs none; or it is a GGUF file, which is refused before it is unpacked.
    """
    if str(name).endswith(gguf.SUFFIX):
        raise CheckpointError(f"'{name}' is a language model without a speech encoder: give it as --language_model")
    if not can_be_fetched(name):
        return find_model(name, revision)
    name = str(name)
    if (local := local_folder(name)) is not None:
        return Reference(name, local)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(models_folder() / ".lock"):  # of several processes, one fetches and the others wait
            return Reference(name, local_folder(name) or _fetch(name))
    except OSError as error:
        raise CheckpointError(f"{models_folder()} cannot be made ({error.strerror}): set {CACHE_VARIABLE}") from error


def _fetch(name: str) -> Path:
    (result,) = download_models([name], models_folder())
    if result.source is None:
        raise CheckpointError(
            f"the speech encoder {name} is not on this machine and cannot be fetched ({result.error}): with a network"
            f" run asr-doge download model {name} --output_dir {models_folder()}, or use the bundled nano, which needs"
            " none (--model nano, --speech_encoder nano/encoder)"
        )
    return result.folder
