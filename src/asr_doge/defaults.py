"""The models and the prompt that settings name by default: the published pair, and the bundled `english`.

Promises: importing this loads nothing, as in `asr_doge.choices`.
"""

DEFAULT_SPEECH_ENCODER = "ibm-granite/granite-speech-3.3-2b"
DEFAULT_LANGUAGE_MODEL = "SmallDoge/Doge-320M-Checkpoint"
DEFAULT_MODEL = "english"
DEFAULT_PROMPT = "transcribe the following audio: "
