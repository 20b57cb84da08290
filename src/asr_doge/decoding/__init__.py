"""Turn the encoder's output into words: decoders, word times, confidence, guards, hotwords.

One interface: `asr_doge.decoding.recognition.Recognizer` turns waveforms into `Recognition`s by the decoder that a
`DecodingConfig` names. Importing this package loads neither torch nor transformers.
"""

from asr_doge.decoding.configuration import DecoderName, DecodingConfig, Timestamps

__all__ = ["DecoderName", "DecodingConfig", "Timestamps"]
