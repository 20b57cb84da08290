"""The registry of speech encoder families: one file a family, one line here."""

from transformers import PreTrainedConfig

from asr_doge.errors import CheckpointError
from asr_doge.models.encoders.base import (
    EncoderFamily,
    SpeechEncoder,
    SpeechEncoderOutput,
    concatenate_outputs,
    encode,
    length_mask,
    set_encoder_window,
)
from asr_doge.models.encoders.conformer_ctc import GraniteSpeech5SpeechEncoder, ParakeetSpeechEncoder
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder, GraniteSpeechPlusEncoder
from asr_doge.models.encoders.seanet import SEANetSpeechEncoder
from asr_doge.models.encoders.wav2vec2 import HubertSpeechEncoder, Wav2Vec2SpeechEncoder, WavLMSpeechEncoder
from asr_doge.models.encoders.whisper import WhisperSpeechEncoder

ENCODERS: dict[str, type[EncoderFamily]] = {
    family.model_type: family
    for family in (
        GraniteSpeechEncoder,
        GraniteSpeechPlusEncoder,
        GraniteSpeech5SpeechEncoder,
        HubertSpeechEncoder,
        ParakeetSpeechEncoder,
        SEANetSpeechEncoder,
        Wav2Vec2SpeechEncoder,
        WavLMSpeechEncoder,
        WhisperSpeechEncoder,
    )
}


def encoder_family(config: PreTrainedConfig) -> type[EncoderFamily]:
    """The family that reads checkpoints of `config.model_type`.

    Raises:
        CheckpointError: no family does.
    """
    if config.model_type not in ENCODERS:
        raise CheckpointError(
            f"speech encoder of type '{config.model_type}' is not supported; supported: {', '.join(sorted(ENCODERS))}"
        )
    return ENCODERS[config.model_type]


__all__ = [
    "ENCODERS",
    "EncoderFamily",
    "SpeechEncoder",
    "SpeechEncoderOutput",
    "concatenate_outputs",
    "encode",
    "encoder_family",
    "length_mask",
    "set_encoder_window",
]
