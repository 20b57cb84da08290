"""Find a model's files, and read its configuration, tokenizer and generation settings.

Promises: a reference is a bundled name (`english`, `nano`), a local folder or a hub id, everywhere alike; without a
network, models in the hub's cache load; a file that is missing or cannot be used is an error that names it.
It does not read weights (see `asr_doge.models.weights`).
"""

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from asr_doge.errors import CheckpointError, first_line
from asr_doge.models import gguf

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED_MODELS = {
    "english": ASSETS / "english",
    "english/language_model": ASSETS / "english" / "language_model",
    "nano": ASSETS / "nano",
    "nano/encoder": ASSETS / "nano" / "encoder",
    "nano/language_model": ASSETS / "nano" / "language_model",
}
"""Models inside the package. A local folder of the same name is written `./nano`."""


@dataclass(frozen=True)
class Reference:
    """Where a model is: a folder on this machine, or a repository of the hub at a revision.

    Attributes:
        name: as the user wrote it; used in messages and configurations.
        folder: the local folder, or None for a hub repository.
        revision: branch, tag or commit of a hub repository.
        origin: the file that the folder was made from, if it is not the user's own.
    """

    name: str
    folder: Path | None
    revision: str | None = None
    origin: Path | None = None

    def file(self, filename: str) -> Path | None:
        """Path of `filename` on this machine, downloaded if necessary; None if the model has no such file.

        Raises:
            CheckpointError: the hub cannot be reached, or has no such repository or revision.
        """
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
        return _hub_file(self.name, filename, self.revision)

    def required_file(self, filename: str) -> Path:
        """Like `file`, but a missing file is a CheckpointError."""
        path = self.file(filename)
        if path is None:
            raise CheckpointError(f"model '{self.name}' has no {filename}: the folder is incomplete or no such model")
        return path

    @property
    def pointer(self) -> str:
        """The model's name in a checkpoint, valid wherever the checkpoint is loaded from."""
        own = self.origin or self.folder
        # The folder of a bundled or fetched model is not the one that its name would be.
        return str(own.resolve()) if own is not None and own == Path(self.name) else self.name

    @property
    def location(self) -> str:
        """The argument for transformers' own `from_pretrained`; offline, the folder in the hub's cache."""
        if self.folder is not None:
            return str(self.folder)
        snapshot = self._snapshot()
        if snapshot is not None and not _hub_answers(self.name, self.revision):
            return str(snapshot)  # given a name, transformers would try the unreachable network for minutes
        return self.name

    @property
    def commit(self) -> str | None:
        """The hub commit of the files on this machine; None for a folder or before anything is downloaded."""
        snapshot = self._snapshot() if self.folder is None else None
        return snapshot.name if snapshot is not None else None

    def _snapshot(self) -> Path | None:
        """The folder of this revision in the hub's cache, named after the commit."""
        config = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return Path(config).parent if isinstance(config, str) else None


def find_model(name: str | Path, revision: str | None = None) -> Reference:
    """Resolve a bundled name, a local folder, a GGUF file or a hub id.

    For a hub id that ends in `-checkpoint` (like SmallDoge's), `-Checkpoint` is tried too, and vice versa.

    Raises:
        CheckpointError: it looks like a path but there is no such folder, or cannot be a hub id; or the hub has neither
            spelling.
    """
    text = str(name)
    if text in BUNDLED_MODELS:
        return Reference(text, BUNDLED_MODELS[text])
    if text and Path(text).is_dir():
        return Reference(text, Path(text))
    if text.endswith(gguf.SUFFIX) and Path(text).is_file():
        return Reference(text, gguf.unpacked_gguf(Path(text)), origin=Path(text))
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1 or "\\" in text:
        raise CheckpointError(
            f"unknown model '{text}': there is no such folder; give english, nano, a folder with a model, a .gguf file,"
            " or a hub id such as owner/name"
        )
    reference = Reference(text, None, revision)
    return _either_spelling(reference) if text.lower().endswith("-checkpoint") else reference


def _either_spelling(reference: Reference) -> Reference:
    """The repository of this name, or of the name with the other case of `-checkpoint`; a message says which."""
    stem, _, ending = reference.name.rpartition("-")
    other = replace(reference, name=f"{stem}-{'Checkpoint' if ending == 'checkpoint' else 'checkpoint'}")
    try:
        reference.file("config.json")
        return reference
    except CheckpointError as error:
        with suppress(CheckpointError):
            other.file("config.json")
            print(f"model '{reference.name}' was not found; '{other.name}' was, and is used", file=sys.stderr)
            return other
        raise CheckpointError(f"{error} ('{other.name}' was tried too)") from error


def load_model_config(reference: Reference) -> PreTrainedConfig:
    """The transformers configuration of a model.

    Raises:
        CheckpointError: config.json is missing, not JSON, or of a type transformers does not know.
    """
    path = reference.required_file("config.json")
    if (
        reference.folder is not None
        and (reference.folder / "model.bin").exists()
        and b"model_type" not in path.read_bytes()
    ):
        raise CheckpointError(
            f"model '{reference.name}' is CTranslate2's (as faster-whisper reads it): give the original, such as"
            " openai/whisper-base, or make a folder of it with asr-doge download model"
        )
    try:
        return AutoConfig.from_pretrained(reference.location, revision=reference.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"model '{reference.name}': config.json cannot be used: {first_line(error)}") from error


def load_generation_config(reference: Reference) -> GenerationConfig:
    """A checkpoint's default generation settings: its end-of-sequence token, its longest text.

    Raises:
        CheckpointError: they are missing (transformers would then cut every text at 20 tokens) or not JSON.
    """
    reference.required_file("generation_config.json")
    try:
        return GenerationConfig.from_pretrained(reference.location, revision=reference.revision or "main")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"model '{reference.name}': generation_config.json cannot be used: {first_line(error)}"
        ) from error


def load_tokenizer(reference: Reference) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model.

    Raises:
        CheckpointError: its files are missing or unreadable.
    """
    try:
        return AutoTokenizer.from_pretrained(reference.location, revision=reference.revision, trust_remote_code=False)
    except Exception as error:  # for invalid content the tokenizers library raises bare Exceptions
        raise CheckpointError(f"model '{reference.name}' has no usable tokenizer: {first_line(error)}") from error


def _hub_file(name: str, filename: str, revision: str | None) -> Path | None:
    """A file of a hub repository, from the hub's cache on this machine if it has not changed since."""
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if cached is _CACHED_NO_EXIST:
        return None
    try:
        if cached is None:
            # Asked once: with an empty cache, `hf_hub_download` tries an unreachable network for 23 seconds.
            with suppress(RemoteEntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(name, filename, revision=revision))
        return Path(hf_hub_download(name, filename, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # the type depends on the HTTP client
        # Offline, a model in the cache must still load: it may not have this file.
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return None
        raise _unreachable(name, error) from error


def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub can be reached, asked once and without retries."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
    except HfHubHTTPError:
        return True  # an error status is an answer too
    except Exception:  # as in `_hub_file`
        return False
    return True


def _unreachable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"model '{name}' is neither on this machine nor to be had from the hub ({first_line(error)});"
        " check its name and the network, or give a local folder"
    )
