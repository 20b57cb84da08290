"""Find a model's files and read only the required tensors.

Promises: a reference is a bundled name (`english`, `nano`), a local folder or a hub id, everywhere alike; only the
shards that hold required tensors are opened, and only these tensors are read; a missing or unexpected weight is an
error that names it, never a silent random initialization; only safetensors are read, no pickle.
It does not know what the tensors mean.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    _CACHED_NO_EXIST,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from asr_doge.errors import CheckpointError
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

RenameKey = Callable[[str], str | None]

_STORED_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""Names of types in safetensors."""


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
        is_bundled = self.name in BUNDLED_MODELS
        return self.name if self.folder is None or is_bundled else str((self.origin or self.folder).resolve())

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


def read_weights(reference: Reference, rename_key: RenameKey) -> dict[str, Tensor]:
    """Read the required tensors of a checkpoint, in one file or in shards.

    Args:
        reference: the model.
        rename_key: gives a stored tensor's name in the target module, or None if it is not required.

    Returns:
        Tensors by their names in the target module.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or a missing shard.
    """
    with stored_weights(reference, rename_key, lambda name: None) as stored:
        return {name: tensor[...] for name, tensor in stored.items()}


@contextmanager
def stored_weights(
    reference: Reference, rename_key: RenameKey, dtype_of: Callable[[str], torch.dtype | None]
) -> Iterator[dict[str, Any]]:
    """The required tensors by their target names, as slices of the files: `tensor[...]` reads one.

    The pages read of a mapped file count as memory until the last of its tensors is freed. So only tensors that are
    stored in the target type share a mapping; each other tensor has its own, which is closed after its conversion.

    Args:
        reference, rename_key: as in `read_weights`.
        dtype_of: the target type of a tensor; None for any that will be copied.

    Raises:
        CheckpointError: as in `read_weights`.
    """
    with ExitStack() as files:
        slices: dict[str, Any] = {}
        for path, keys in _weight_files(reference, rename_key).items():
            stored = files.enter_context(_open_weights(reference, path))
            for key, name in keys.items():
                tensor, wanted = stored.get_slice(key), dtype_of(name)
                is_as_wanted = wanted is not None and tensor.get_dtype() == _STORED_NAMES.get(wanted)
                slices[name] = tensor if is_as_wanted else _SliceToCopy(reference, path, key, tensor.get_shape())
        yield slices


@dataclass(frozen=True)
class _SliceToCopy:
    """A stored tensor that is mapped again for each read."""

    reference: Reference
    path: Path
    key: str
    shape: list[int]

    def __getitem__(self, part: Any) -> Tensor:
        with _open_weights(self.reference, self.path) as stored:
            return stored.get_slice(self.key)[part]

    def get_shape(self) -> list[int]:
        return self.shape


def weights_fingerprint(reference: Reference, rename_key: RenameKey) -> str:
    """Digest of the required weights: names, types, shapes, and the first and last row of each.

    Training changes every row, so this detects other weights without reading gigabytes.
    """
    seen: dict[str, bytes] = {}
    for path, keys in _weight_files(reference, rename_key).items():
        with _open_weights(reference, path) as stored:
            for key, name in keys.items():
                rows = stored.get_slice(key)
                seen[name] = f"{name} {rows.get_dtype()} {rows.get_shape()}".encode()
                ends = [rows[:1], rows[-1:]] if rows.get_shape() else [stored.get_tensor(key).reshape(1)]
                for row in ends:
                    seen[name] += row.contiguous().view(torch.uint8).numpy().tobytes()
    # Sorted by name, so that the same weights in other shards give the same digest.
    return hashlib.sha256(b"".join(seen[name] for name in sorted(seen))).hexdigest()[:16]


def load_weights(
    module: nn.Module, reference: Reference, rename_key: RenameKey, source: str, dtype: torch.dtype
) -> None:
    """Load the required tensors of a checkpoint into `module` (which may be on the meta device), floats as `dtype`.

    Those stored in this type are mapped from disk, not copied; of the others one at a time is in memory as stored.

    Args:
        module: the target.
        reference, rename_key: as in `read_weights`.
        source: name of the checkpoint in messages.
        dtype: of the floating-point weights in memory.

    Raises:
        CheckpointError: as in `read_weights`; or a weight is missing, unexpected or of another shape; the message
            names them.
    """
    floating = {name: tensor.is_floating_point() for name, tensor in module.state_dict().items()}
    with stored_weights(reference, rename_key, lambda name: dtype if floating.get(name) else None) as stored:
        check_keys(floating, stored, source)
        check_shapes(module.state_dict(), stored, source)
        for name, tensor in stored.items():
            value = tensor[...].to(dtype) if floating[name] else tensor[...]
            owner, _, own_name = name.rpartition(".")
            module.get_submodule(owner).load_state_dict({own_name: value}, strict=False, assign=True)


def check_keys(expected: Iterable[str], found: Iterable[str], source: str) -> None:
    """Raise a CheckpointError that names what is missing or unexpected in `found`."""
    expected, found = set(expected), set(found)
    problems = []
    if expected - found:
        problems.append(f"missing weights {listed(expected - found)}")
    if found - expected:
        problems.append(f"unexpected weights {listed(found - expected)}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> None:
    """Raise a CheckpointError that names what has another shape in `found` than in `expected`, which has all its names.

    `found` holds tensors, or slices of `stored_weights`.
    """
    shapes = {name: found[name].shape if isinstance(found[name], Tensor) else found[name].get_shape() for name in found}
    wrong = [name for name, shape in shapes.items() if list(shape) != list(expected[name].shape)]
    if wrong:
        raise CheckpointError(f"{source}: weights of another shape than the configuration says: {listed(wrong)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for use in our messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _weight_files(reference: Reference, rename_key: RenameKey) -> dict[Path, dict[str, str]]:
    """Files that hold required tensors, each with {stored name: target name}."""
    index_path = reference.file(SAFE_WEIGHTS_INDEX_NAME)
    if index_path is None:
        path = reference.required_file(SAFE_WEIGHTS_NAME)
        with _open_weights(reference, path) as stored:
            wanted = {key: name for key in stored.keys() if (name := rename_key(key)) is not None}  # noqa: SIM118
        return {path: wanted}
    try:
        weight_map: dict[str, str] = dict(json.loads(index_path.read_text())["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"model '{reference.name}': {index_path.name} is not a weight index") from error
    shards: dict[str, dict[str, str]] = {}
    for key, shard in weight_map.items():
        if (name := rename_key(key)) is not None:
            shards.setdefault(shard, {})[key] = name
    return {reference.required_file(shard): keys for shard, keys in shards.items()}


@contextmanager
def _open_weights(reference: Reference, path: Path) -> Iterator[Any]:
    """A memory-mapped safetensors file; damage of any kind becomes a CheckpointError."""
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"model '{reference.name}': {path.name} is damaged ({first_line(error)}); copy or download it again"
        ) from error


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


def listed(names: Iterable[str]) -> str:
    """Up to six names, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
