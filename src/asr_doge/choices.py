"""The allowed values of settings, against which command lines and checkpoints are checked.

Promises: importing this loads nothing. (Torch and transformers take seconds, and `--help` needs neither.)
"""

from typing import Literal

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
