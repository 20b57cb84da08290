"""Finding a model's files and reading only the tensors that are wanted.

Promises: a reference is a bundled name (`nano`), a local folder or a hub id, the same everywhere; of a checkpoint only
the shards that hold wanted tensors are opened, and of those only the wanted tensors are read; a missing or unexpected
weight is an error that names it, never a silent random initialisation; only safetensors are read, no pickle.
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

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED_MODELS = {
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
"""What safetensors calls a type."""


@dataclass(frozen=True)
class Reference:
    """Where a model is: a folder on this machine, or a repository of the hub at a revision.

    Attributes:
        name: as the user wrote it; it goes into messages and configurations.
        folder: the local folder, or None for a hub repository.
        revision: branch, tag or commit of a hub repository.
    """

    name: str
    folder: Path | None
    revision: str | None = None

    def file(self, filename: str) -> Path | None:
        """Path of `filename` on this machine, downloaded if need be; None if the model has no such file.

        Raises:
            CheckpointError: the hub cannot be reached, or knows no such repository or revision.
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
        """What a checkpoint calls this model, wherever it is loaded from later."""
        is_bundled = self.name in BUNDLED_MODELS
        return self.name if self.folder is None or is_bundled else str(self.folder.resolve())

    @property
    def location(self) -> str:
        """What transformers' own `from_pretrained` takes; offline, the folder in the hub's cache."""
        if self.folder is not None:
            return str(self.folder)
        snapshot = self._snapshot()
        if snapshot is not None and not _hub_answers(self.name, self.revision):
            return str(snapshot)  # by name, transformers would try a dead network for minutes
        return self.name

    @property
    def commit(self) -> str | None:
        """The hub commit of the files on this machine; None for a folder or before anything is downloaded."""
        snapshot = self._snapshot() if self.folder is None else None
        return snapshot.name if snapshot is not None else None

    def _snapshot(self) -> Path | None:
        """The folder of this revision in the hub's cache, which bears the commit's name."""
        config = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return Path(config).parent if isinstance(config, str) else None


def find_model(name: str | Path, revision: str | None = None) -> Reference:
    """Resolve a bundled name, a local folder or a hub id.

    A hub id that ends in `-checkpoint` (so SmallDoge's) is looked for as `-Checkpoint` too, and the other way round.

    Raises:
        CheckpointError: it looks like a path but there is no such folder, or cannot be a hub id; or neither spelling is
            to be had.
    """
    text = str(name)
    if text in BUNDLED_MODELS:
        return Reference(text, BUNDLED_MODELS[text])
    if text and Path(text).is_dir():
        return Reference(text, Path(text))
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1 or "\\" in text:
        raise CheckpointError(
            f"unknown model '{text}': there is no such folder; give nano, a folder with a model, or a hub id such as"
            " owner/name"
        )
    reference = Reference(text, None, revision)
    return _either_spelling(reference) if text.lower().endswith("-checkpoint") else reference


def _either_spelling(reference: Reference) -> Reference:
    """The repository of this name, or of the name with the case of its `-checkpoint` changed; it says which."""
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
    reference.required_file("config.json")
    try:
        return AutoConfig.from_pretrained(reference.location, revision=reference.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"model '{reference.name}': config.json cannot be used: {first_line(error)}") from error


def load_generation_config(reference: Reference) -> GenerationConfig:
    """How a checkpoint writes by default: its end-of-sequence token, its longest text.

    Raises:
        CheckpointError: it is missing, without which transformers would cut every text at 20 tokens, or not JSON.
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
    except Exception as error:  # whatever stands in the file: the tokenizers library raises bare Exceptions
        raise CheckpointError(f"model '{reference.name}' has no usable tokenizer: {first_line(error)}") from error


def read_weights(reference: Reference, rename_key: RenameKey) -> dict[str, Tensor]:
    """Read the wanted tensors of a checkpoint, in one file or in shards.

    Args:
        reference: the model.
        rename_key: gives a stored tensor's name in the wanted module, or None if it is not wanted.

    Returns:
        Tensors by the name that the wanted module gives them.

    Raises:
        CheckpointError: no safetensors file, one that is damaged, or a shard that is missing.
    """
    with stored_weights(reference, rename_key, lambda name: None) as stored:
        return {name: tensor[...] for name, tensor in stored.items()}


@contextmanager
def stored_weights(
    reference: Reference, rename_key: RenameKey, dtype_of: Callable[[str], torch.dtype | None]
) -> Iterator[dict[str, Any]]:
    """The wanted tensors, by the wanted names, as slices of the files: `tensor[...]` reads one.

    What was read of a mapped file counts as memory until the last of its tensors is gone. So only tensors that are
    stored in the type in which they are wanted share a mapping; each of the others has its own, gone when it has been
    converted.

    Args:
        reference, rename_key: as in `read_weights`.
        dtype_of: the type in which a tensor is wanted; None for any that will be copied.

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
    """A stored tensor that is mapped anew whenever it is read."""

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
    """Digest of the wanted weights: names, types, shapes, and the first and last row of each.

    Retraining moves every row, so this notices other weights without reading gigabytes.
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
    # By name, so that the same weights in other shards are still the same.
    return hashlib.sha256(b"".join(seen[name] for name in sorted(seen))).hexdigest()[:16]


def load_weights(
    module: nn.Module, reference: Reference, rename_key: RenameKey, source: str, dtype: torch.dtype
) -> None:
    """Put the wanted tensors of a checkpoint into `module` (which may be on the meta device), floating ones as `dtype`.

    Those of this type are mapped from disk, not copied; of others one at a time is in memory as it is stored.

    Args:
        module: what they are for.
        reference, rename_key: as in `read_weights`.
        source: what messages call the checkpoint.
        dtype: of the floating weights in memory.

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
    """Raise a CheckpointError naming what is missing from or unexpected in `found`."""
    expected, found = set(expected), set(found)
    problems = []
    if expected - found:
        problems.append(f"missing weights {listed(expected - found)}")
    if found - expected:
        problems.append(f"unexpected weights {listed(found - expected)}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> None:
    """Raise a CheckpointError naming what in `found` has another shape than in `expected`, which has all its names.

    `found` holds tensors, or slices of `stored_weights`.
    """
    shapes = {name: found[name].shape if isinstance(found[name], Tensor) else found[name].get_shape() for name in found}
    wrong = [name for name, shape in shapes.items() if list(shape) != list(expected[name].shape)]
    if wrong:
        raise CheckpointError(f"{source}: weights of another shape than the configuration says: {listed(wrong)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _weight_files(reference: Reference, rename_key: RenameKey) -> dict[Path, dict[str, str]]:
    """Files that hold wanted tensors, each with {stored name: wanted name}."""
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
    """A file of a hub repository, from the hub's cache on this machine where it has not changed since."""
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if cached is _CACHED_NO_EXIST:
        return None
    try:
        if cached is None:
            # Asked once: `hf_hub_download`, with nothing in the cache, tries a dead network for 23 seconds.
            with suppress(RemoteEntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(name, filename, revision=revision))
        return Path(hf_hub_download(name, filename, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # whatever the HTTP client of the day raises
        # Offline, a model that is in the cache must still load: it may simply have no such file.
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return None
        raise _unreachable(name, error) from error


def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub can be reached, asked once and without retries."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
    except HfHubHTTPError:
        return True  # an answer, if not a welcome one
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
