"""Make a transcriber from the settings of `asr-doge transcribe`, in any process."""

from asr_doge.inference.configuration import TranscribeConfig
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.models.checkpoints import find_model
from asr_doge.models.punctuation import load_punctuator


def load_configured(config: TranscribeConfig) -> Transcriber:
    """Load the model that the settings of `transcribe` name; errors as in `load`."""
    transcriber = load(
        config.model,
        config.device,
        config,
        config.batch_size,
        config.quantization,
        config.language,
        config.dtype,
        config.compile,
    )
    if config.text == "written":
        transcriber.punctuator = load_punctuator(find_model(config.model))
    return transcriber
