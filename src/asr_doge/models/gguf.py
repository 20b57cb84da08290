"""Language models in one GGUF file, made into the folder that transformers reads.

Promises: every weight of the file is in the folder, in float32 (what a quantized file stands for, not what it was
before); the folder is made once for a file's content, in the user's cache, whole or not at all; what transformers
cannot read is a CheckpointError that names the file. Transformers' own reader does the work, with the `gguf` extra.
It does not know speech, nor what is done with the model.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from asr_doge.errors import CheckpointError, first_line
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.cache_folder import cache_folder

SUFFIX = ".gguf"
_MAGIC = b"GGUF"


def unpacked_gguf(path: Path) -> Path:
    """The folder of a GGUF file, made now if need be.

    Raises:
        CheckpointError: it is no GGUF file, its architecture is not supported, the `gguf` extra is not installed, or
            the cache cannot be written to.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(_MAGIC)) == _MAGIC
            file.seek(0)
            digest = hashlib.sha256()
            while is_gguf and (block := file.read(1 << 20)):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if not is_gguf:
        raise CheckpointError(f"{path} is not a GGUF file: copy or download it again")
    folder = cache_folder() / "gguf" / digest.hexdigest()[:16]
    if folder.is_dir():  # before anything is written, as the cache may be read-only
        return folder
    if find_spec("gguf") is None:
        raise CheckpointError(f"{path} needs the gguf package: pip install 'asr-doge[gguf]'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():  # nor has another process made it meanwhile
                _unpack(path, folder)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be unpacked into {folder.parent} ({error.strerror}): set ASR_DOGE_CACHE to a folder that"
            " can be written to"
        ) from error
    return folder


def _unpack(path: Path, folder: Path) -> None:
    place = str(path.parent.absolute())
    try:
        with atomic_folder(folder) as partial:
            model = AutoModelForCausalLM.from_pretrained(place, gguf_file=path.name, dtype=torch.float32)
            del model.config.quantization_config, model.hf_quantizer  # how it was stored, which it no longer is
            model.save_pretrained(partial)
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=path.name)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            tokenizer.save_pretrained(partial)
    except Exception as error:  # the reader raises whatever a damaged file makes numpy or Python raise
        raise CheckpointError(
            f"{path} cannot be used ({first_line(error)}): give a GGUF file of another architecture, or a model's"
            " folder or hub id"
        ) from error
