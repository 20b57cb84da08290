"""One file of the feature cache: the features of some utterances, and what computed them.

Format: safetensors with the tensors `embeddings` `[rows, D]`, `scales` `[rows]` (int8 storage only), `ctc_ids` and
`ctc_log_probs` `[CTC rows, k]` (encoders with a CTC head only). The rows of all utterances follow one another in the
order in which the header's one metadata entry, JSON, lists them: id, stamp of the recording, and the number of rows
and CTC rows of each copy. So a file says by itself what it holds, and a cache is merged by listing its files.

Promises: the same features give the same bytes; a file that lost its tail, or is none of ours, is reported as such. It
does not know where files lie (see `asr_doge.data.stores`), nor which utterance belongs in which file (see
`asr_doge.data.feature_folder`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

StorageType = Literal["fp32", "bf16", "int8"]

Source = Mapping[str, str | int | None]
"""Everything that the features depend on besides the audio, by name; the cache only compares it. Made by
`asr_doge.models.encoders.loading.feature_source`."""

_FORMAT = "asr-doge feature cache, version 2"
_METADATA_KEY = "asr_doge"  # a single one: safetensors writes several in an order of its own
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_TENSOR_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8, "I16": torch.int16}
_LARGEST_CTC_ID = torch.iinfo(torch.int16).max


@dataclass(frozen=True)
class Storage:
    """How features are stored.

    Attributes:
        dtype: of the embeddings: fp32, bf16, or int8 with one scale a frame.
        ctc_top_k: CTC labels kept of each frame, the likeliest; 0 for none.
        augment_copies: augmented copies of each training utterance.
        compute_dtype: precision in which the encoder computed, which rounds as storing does.
    """

    dtype: StorageType = "fp32"
    ctc_top_k: int = 0
    augment_copies: int = 0
    compute_dtype: str = "fp32"

    def described(self) -> dict[str, str | int]:
        """Settings for a file's header; fp32 compute_dtype is omitted, so that files equal those of older versions."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("compute_dtype", "fp32")}


@dataclass(frozen=True)
class Features:
    """The encoder's output for one recording.

    Attributes:
        embeddings: `[T', D]`.
        ctc_ids: `[T, k]`, the likeliest CTC labels of each frame, the likeliest first; None without a CTC head.
        ctc_log_probs: `[T, k]`, their log-probabilities.
    """

    embeddings: Tensor
    ctc_ids: Tensor | None = None
    ctc_log_probs: Tensor | None = None


class Rows(NamedTuple):
    """The position of one copy in a file: rows of `embeddings`, and of the CTC tensors."""

    start: int
    stop: int
    ctc_start: int
    ctc_stop: int


class Entry(NamedTuple):
    """One utterance in a file."""

    stamp: str
    """The recording's `asr_doge.data.fingerprints.fingerprint`."""
    copies: tuple[Rows, ...]
    """The recording itself, then its augmented copies."""


@dataclass(frozen=True)
class ShardHeader:
    """The header of a file.

    Attributes:
        source: what computed the features.
        storage: how they are stored.
        entries: the utterances, by id.
        unreadable: why an utterance has no features, by id.
        tensors: type, shape and first byte of each tensor.
        digest: of all this, to tell a file from another that took its place.
    """

    source: Source
    storage: Storage
    entries: dict[str, Entry]
    unreadable: dict[str, str]
    tensors: dict[str, tuple[torch.dtype, list[int], int]]
    digest: str


class DamagedShardError(Exception):
    """A file that is not whole, or not one of the feature cache's; the message says which."""


class OtherVersionError(DamagedShardError):
    """A file that another version of this package wrote, and may still read."""


def to_storage(features: Features, dtype: StorageType) -> dict[str, Tensor]:
    """Rows to store, by the name of their tensor; `from_storage` is the way back."""
    rows = features.embeddings.detach().cpu()
    if dtype == "int8":
        rows = rows.float()
        scales = rows.abs().amax(dim=1).div(127).clamp(min=torch.finfo(torch.float32).tiny)
        stored = {"embeddings": (rows / scales[:, None]).round().to(torch.int8), "scales": scales}
    else:
        # A copy, always: a slice of a batch would keep the whole batch in memory.
        stored = {"embeddings": rows.to(_DTYPES[dtype], copy=True).contiguous()}
    if features.ctc_ids is not None and features.ctc_log_probs is not None:
        if features.ctc_ids.numel() and int(features.ctc_ids.max()) > _LARGEST_CTC_ID:
            raise ValueError(f"a CTC label above {_LARGEST_CTC_ID} cannot be stored")
        stored["ctc_ids"] = features.ctc_ids.detach().cpu().to(torch.int16, copy=True)
        stored["ctc_log_probs"] = features.ctc_log_probs.detach().cpu().to(torch.bfloat16, copy=True)
    return stored


def from_storage(rows: Mapping[str, Tensor]) -> Features:
    """Features of stored rows; views of them where the type allows, so not to be written to."""
    embeddings = rows["embeddings"]
    if "scales" in rows:
        embeddings = embeddings.float() * rows["scales"][:, None]
    return Features(embeddings, rows.get("ctc_ids"), rows.get("ctc_log_probs"))


def bytes_per_second(storage: Storage, hidden_size: int, frame_rate_hz: float, ctc_frame_rate_hz: float) -> float:
    """Bytes that a second of audio takes in a file."""
    row = hidden_size * _DTYPES[storage.dtype].itemsize + (4 if storage.dtype == "int8" else 0)
    return frame_rate_hz * row + ctc_frame_rate_hz * storage.ctc_top_k * (2 + 2)


def shard_bytes(
    source: Source,
    storage: Storage,
    utterances: Mapping[str, tuple[str, Sequence[Mapping[str, Tensor]]]],
    unreadable: Mapping[str, str],
) -> bytes:
    """A file's content; `utterances` has the stamp and the stored rows of each copy, by id."""
    ordered = {id_: utterances[id_] for id_ in sorted(utterances)}
    copies = [copy for _, copies in ordered.values() for copy in copies]
    names = copies[0].keys() if copies else ()
    tensors = {name: torch.cat([copy[name] for copy in copies]) for name in names}
    content = {
        "format": _FORMAT,
        "source": dict(source),
        "storage": storage.described(),
        "utterances": {
            id_: [stamp, [[len(copy["embeddings"]), len(copy.get("ctc_ids", ()))] for copy in copies]]
            for id_, (stamp, copies) in ordered.items()
        },
        "unreadable": {id_: unreadable[id_] for id_ in sorted(unreadable)},
    }
    # ASCII, as a lone surrogate in an id has a JSON escape, but no UTF-8 form.
    return safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(content)})


def read_header(read: Callable[[int, int], bytes], size: int) -> ShardHeader:
    """Read the header of a file, without the features.

    Args:
        read: gives the bytes from one position to another.
        size: of the file, in bytes.

    Raises:
        DamagedShardError: it is not whole, or not ours.
    """
    length = int.from_bytes(read(0, 8), "little")
    if not 8 < 8 + length <= size:
        raise DamagedShardError("is not whole")
    try:
        fields = json.loads(read(8, 8 + length))
        metadata = fields.pop("__metadata__")
        content = json.loads(metadata[_METADATA_KEY])
        if content["format"] != _FORMAT:
            raise OtherVersionError(f"is of another version than {_FORMAT!r}")
        tensors = {
            name: (_TENSOR_DTYPES[field["dtype"]], field["shape"], 8 + length + field["data_offsets"][0])
            for name, field in fields.items()
        }
        end = 8 + length + max((field["data_offsets"][1] for field in fields.values()), default=0)
        header = ShardHeader(
            content["source"],
            Storage(**content["storage"]),
            _entries(content["utterances"]),
            content["unreadable"],
            tensors,
            header_digest(metadata),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise DamagedShardError("is damaged") from None
    if end != size:
        raise DamagedShardError("is not whole")
    return header


def header_digest(metadata: Mapping[str, str]) -> str:
    """Digest of a file's metadata, as safetensors gives it."""
    return hashlib.sha256(metadata[_METADATA_KEY].encode("utf-8", "surrogatepass")).hexdigest()


def _entries(utterances: dict[str, Any]) -> dict[str, Entry]:
    entries = {}
    row = ctc_row = 0
    for id_, (stamp, copies) in utterances.items():
        places = []
        for rows, ctc_rows in copies:
            places.append(Rows(row, row + rows, ctc_row, ctc_row + ctc_rows))
            row, ctc_row = row + rows, ctc_row + ctc_rows
        entries[id_] = Entry(stamp, tuple(places))
    return entries


def read_rows(
    read: Callable[[int, int], bytes], header: ShardHeader, place: Rows, names: Iterable[str]
) -> dict[str, Tensor]:
    """Stored rows of one copy, read from where no memory can be mapped.

    Args:
        read: gives the bytes from one position to another.
        header: of the file.
        place: of the copy.
        names: of the tensors to read.
    """
    rows = {}
    for name in names:
        dtype, shape, first = header.tensors[name]
        start, stop = row_range(name, place)
        row_bytes = dtype.itemsize * (shape[1] if len(shape) > 1 else 1)
        content = bytearray(read(first + start * row_bytes, first + stop * row_bytes)) if stop > start else bytearray()
        if len(content) != (stop - start) * row_bytes:
            raise DamagedShardError("is not whole")
        tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        rows[name] = tensor.view(stop - start, *shape[1:])
    return rows


def is_of_ctc(name: str) -> bool:
    """Whether the tensor `name` is of the CTC head."""
    return name.startswith("ctc_")


def row_range(name: str, place: Rows) -> tuple[int, int]:
    """First row of a copy in the tensor `name`, and the one after its last."""
    return (place.ctc_start, place.ctc_stop) if is_of_ctc(name) else (place.start, place.stop)
