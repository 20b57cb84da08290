"""What verbs say and keep quiet about alike."""

import os
import sys

from asr_doge.inference.transcription import Transcriber


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars and messages, and to those of downloads."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the hub's too, but gigabytes should not arrive in silence
    if not HF_HUB_DISABLE_PROGRESS_BARS:  # the user's own wish
        enable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of every worker process


def note_language(transcriber: Transcriber, model: str) -> None:
    """Say so if a language was given in vain."""
    if transcriber.language and not transcriber.recognizer.reads_language:
        why = f"{model} reads no prompt that names the language"
        print(f"--language {transcriber.language} has no effect on the text: {why}", file=sys.stderr)
