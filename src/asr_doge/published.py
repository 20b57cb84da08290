"""The published pair's names, which configurations take as defaults.

Promises: importing this loads nothing. (Torch and transformers take seconds, and `--help` needs neither.)
"""

from typing import Literal

DEFAULT_SPEECH_ENCODER = "ibm-granite/granite-speech-3.3-2b"
DEFAULT_LANGUAGE_MODEL = "SmallDoge/Doge-320M-Checkpoint"
DEFAULT_PROMPT = "transcribe the following audio: "

AdapterType = Literal["mlp", "linear", "conv", "qformer"]
TrainLanguageModel = Literal["none", "lora", "full"]
TrainEncoder = Literal["none", "lora", "last_k"]
Dtype = Literal["fp32", "bf16"]
Quantization = Literal["none", "int8"]
