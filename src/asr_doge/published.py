"""The names of the published pair and of the default model, which configurations take as defaults, and licences.

Promises: importing this loads nothing. (Torch and transformers take seconds, and `--help` needs neither.)
"""

from typing import Literal

DEFAULT_SPEECH_ENCODER = "ibm-granite/granite-speech-3.3-2b"
DEFAULT_LANGUAGE_MODEL = "SmallDoge/Doge-320M-Checkpoint"
DEFAULT_MODEL = "english"
DEFAULT_PROMPT = "transcribe the following audio: "
LICENCES = {
    DEFAULT_SPEECH_ENCODER: "Apache-2.0",
    "nano/encoder": "Apache-2.0",
    "nano/language_model": "Apache-2.0",
    "english/language_model": "Apache-2.0",
    "openai/whisper-base": "MIT",
}
"""Of parts whose publishers' word we have read."""

AdapterType = Literal["mlp", "linear", "conv", "qformer"]
TrainLanguageModel = Literal["none", "lora", "full"]
TrainEncoder = Literal["none", "lora", "last_k"]
EncoderWindow = Literal["full", "clip"]
CTCHeadType = Literal["linear", "blstm", "conformer"]
TrainCTCHead = Literal["adapter", "linear", "blstm", "conformer"]
WarmUp = Literal["none", "ctc"]
Vocabulary = Literal["all", "texts"]
CTCUnits = Literal["characters", "bpe"]
Dtype = Literal["fp32", "bf16"]
LoadDtype = Literal["auto", "fp32", "bf16"]
TrainingDtype = Literal["auto", "fp32", "bf16"]
ComputeDtype = Literal["fp32", "tf32", "bf16"]
ScheduleName = Literal["linear", "onecycle"]
WeightDecayScope = Literal["matrices", "all"]
SampleChoice = Literal["spread", "first"]
Quantization = Literal["none", "int8"]
