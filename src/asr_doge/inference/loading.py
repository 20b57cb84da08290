"""Load what `Transcriber` needs: a whole model or, for `--decoder ctc`, its encoder alone.

It does not know how the model is used (see `asr_doge.inference.transcription`).
"""

from pathlib import Path

from asr_doge.audio.forking import call_fork_safe
from asr_doge.choices import LoadDtype, Quantization
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.errors import CheckpointError
from asr_doge.models import LoadedEncoder, LoadedModel, load_encoder_alone, load_model
from asr_doge.models.compiling import check_compilable, compile_encoder
from asr_doge.models.ctc_head_checkpoints import is_ctc_head
from asr_doge.models.fetching import can_be_fetched
from asr_doge.models.frozen_parts import WITHOUT_TEXT
from asr_doge.models.loading import TORCH_TYPES
from asr_doge.models.precision import choose_precision


def load_model_or_encoder(
    model: str | Path | None = None,
    device: str | None = None,
    decoding: DecodingConfig | None = None,
    quantization: Quantization = "none",
    dtype: LoadDtype = "fp32",
    compile: bool = False,
) -> LoadedModel | LoadedEncoder:
    """The model, or its encoder alone, for a `Transcriber` with these settings; arguments and errors as in `load`."""
    if model is not None and can_be_fetched(model):  # but need not be: none of them gives text by itself
        raise CheckpointError(f"'{model}' is not an ASR-Doge checkpoint; {WITHOUT_TEXT}")
    decoder = decoding.decoder if decoding is not None else None
    alone = decoder == "ctc" or (decoder is None and model is not None and is_ctc_head(model))
    read = load_encoder_alone if alone else load_model

    def load_chosen() -> LoadedModel | LoadedEncoder:
        chosen = choose_precision(dtype, quantization, device)
        if compile:
            check_compilable(model, chosen.quantization)
        loaded = read(model, device=device, dtype=TORCH_TYPES[chosen.dtype], quantization=chosen.quantization)
        if compile:
            compile_encoder(loaded)
        return loaded

    return call_fork_safe(load_chosen)
