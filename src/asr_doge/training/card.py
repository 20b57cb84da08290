"""Write the model card of a checkpoint: what was trained, on which data, and its results on the dev set.

Promises: a `README.md` in the hub's format, with only the figures of the run's own record. It does not know the licence
of the data, nor those of all parts, and says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.defaults import DEFAULT_SPEECH_ENCODER

CARD_NAME = "README.md"
LICENCES = {
    DEFAULT_SPEECH_ENCODER: "Apache-2.0",
    "nano/encoder": "Apache-2.0",
    "nano/language_model": "Apache-2.0",
    "english/language_model": "Apache-2.0",
    "openai/whisper-base": "MIT",
}
"""Licences of parts whose publishers' statement we have read."""


def write_card(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the card into a checkpoint's folder, from the run's record with its result.

    Raises:
        DataError: the folder cannot be written to.
    """
    config, data, result, machine = (record[name] for name in ("config", "data", "result", "machine"))
    counts = record["parameters"]
    total = counts["encoder"] + counts["adapter"] + counts["language_model"]
    content = _CARD.format(
        encoder=config["speech_encoder"],
        encoder_licence=_licence(config["speech_encoder"]),
        language_model=config["language_model"],
        language_model_licence=_licence(config["language_model"]),
        adapter=f"{config['adapter_type']}, {counts['adapter']:,} parameters",
        trained=f"{counts['trainable']:,} of {total:,} parameters ({100 * counts['trainable'] / total:.2f} %)",
        choices=f"language model: {config['train_language_model']}; encoder: {config['train_encoder']}",
        steps=f"{result['steps']:,} steps of {_batch(config)}, learning rate {_learning_rate(config)},"
        f" seed {config['seed']}",
        train=_described(data["train"]),
        dev=_described(data["dev"]),
        cer=f"{100 * result['dev_cer']:.2f} %",
        samples=min(config["eval_samples"], data["dev"]["utterances"]),
        versions=", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        machine=f"{machine['processes']} × {machine['device']}",
    )
    write_atomically(folder / CARD_NAME, content.encode())


def _licence(part: str) -> str:
    return LICENCES.get(part, "licence: see there")


def _described(split: Mapping[str, Any]) -> str:
    return f"{split['utterances']:,} utterances, {split['seconds'] / 3600:.2f} h (fingerprint {split['fingerprint']})"


_CARD = """---
library_name: asr-doge
pipeline_tag: automatic-speech-recognition
tags: [asr-doge, speech-recognition]
---
# A speech recogniser made by ASR-Doge

A frozen speech encoder plugged into a language model through a trained adapter. This folder holds what was trained; the
frozen parts are loaded from where they are.

| | |
|---|---|
| speech encoder | {encoder} ({encoder_licence}) |
| language model | {language_model} ({language_model_licence}) |
| adapter | {adapter} |
| trained | {trained} |
| besides the adapter | {choices} |
| training | {steps} |
| training data | {train} |
| dev data | {dev} |
| lowest dev CER | {cer}, on {samples} utterances, which chose the checkpoint |
| made with | {versions}; {machine} |

```console
$ asr-doge transcribe --model THIS_FOLDER recording.wav
```

Licences: those of the speech encoder, the language model and the training data apply. The data's is not known to this
card: state it before you share the model.
"""


def _batch(config: dict[str, Any]) -> str:
    if config["batch_seconds"] is None:
        return f"{config['batch_size']} utterances"
    return f"batches of at most {config['batch_seconds']:g} s"


def _learning_rate(config: dict[str, Any]) -> str:
    return "in stages" if config["stages"] else f"{config['learning_rate']:g}"
