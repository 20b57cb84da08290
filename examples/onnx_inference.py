"""Transcribe one recording with the graphs of `asr-doge export`, without PyTorch or asr_doge.

For models on Granite Speech's log-mel features, such as nano.

Example:
    pip install numpy onnxruntime soundfile tokenizers
    python examples/onnx_inference.py ./onnx recording.wav        # mono, 16 kHz, at most half a minute
"""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder, recording = Path(sys.argv[1]), sys.argv[2]
settings = json.loads((folder / "settings.json").read_text())
speech_encoder, language_model = (InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "language_model"))

# Log-mel features: 80 bands of a power spectrum every 10 ms, two stacked into one row of 160.
waveform, rate = soundfile.read(recording, dtype="float32")
assert waveform.ndim == 1 and rate == settings["sampling_rate"], "convert it to mono at 16 kHz first"  # noqa: PT018
window = np.pad(np.hanning(401)[:-1], 56)
frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, 256, mode="reflect"), 512)[::160] * window
power = np.abs(np.fft.rfft(frames)) ** 2
log_mel = np.log10(np.maximum(power @ np.load(folder / "mel_filters.npy"), 1e-10))
log_mel = np.maximum(log_mel, log_mel.max() - 8) / 4 + 1
features = log_mel[: len(log_mel) // 2 * 2].reshape(1, -1, 160).astype(np.float32)

lengths = np.array([features.shape[1]])
speech = speech_encoder.run(["speech"], {"input_features": features, "input_lengths": lengths})[0]

# First the prompt and the speech, then the text, token by token, until the end-of-sequence token.
new = [*settings["prompt_ids"], *[settings["speech_token_id"]] * speech.shape[1]]
cache, text, read = np.zeros(settings["empty_cache_shape"], np.float32), [], 0
while len(text) < settings["max_new_tokens"]:
    read += len(new)
    mask = np.ones((1, read), np.int64)
    inputs = {"token_ids": np.array([new]), "speech": speech, "attention_mask": mask, "cache": cache}
    logits, cache = language_model.run(["logits", "new_cache"], inputs)
    new = [int(logits[0, -1].argmax())]
    if new[0] in settings["eos_token_ids"]:
        break
    text += new
print(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(text).strip())
