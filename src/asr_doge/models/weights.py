"""Read the weights of a checkpoint: only the required tensors, from one file or several.

Promises: only the files that hold required tensors are opened, and only these tensors are read; a missing or unexpected
weight is an error that names it, never a silent random initialization; only safetensors are read, no pickle.
It does not know what the tensors mean.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from asr_doge.errors import CheckpointError, first_line
from asr_doge.models.checkpoints import Reference

RenameKey = Callable[[str], str | None]

_STORED_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""Names of types in safetensors."""
SMALL_ELEMENTS = 1 << 16
"""Opening a file takes longer than reading a tensor of this size."""


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

    The pages read of a mapped file count as memory until the last of its tensors is freed. So only small tensors, and
    those that are stored in the target type, share a mapping; each other has its own, closed after its conversion.

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
                shares = is_as_wanted or math.prod(tensor.get_shape()) <= SMALL_ELEMENTS
                slices[name] = tensor if shares else _SliceToCopy(reference, path, key, tensor.get_shape())
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


def listed(names: Iterable[str]) -> str:
    """Up to six names, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
