"""Output that all commands print or suppress."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads torch
    from asr_doge.inference.transcription import Transcriber


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars and messages, and to those of downloads."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the hub's too, but downloads of gigabytes should show progress
    if not HF_HUB_DISABLE_PROGRESS_BARS:  # set by the user
        enable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of every worker process


def note_language(transcriber: "Transcriber", model: str) -> None:
    """Print a note if a language was given that the model does not read."""
    if transcriber.language and not transcriber.recognizer.reads_language:
        why = f"{model} reads no prompt that names the language"
        print(f"--language {transcriber.language} has no effect on the text: {why}", file=sys.stderr)


@contextmanager
def told_how_to_resume(name: str, record: Path, settings: Path) -> Iterator[None]:
    """After Ctrl-C, print the command that resumes a run, if the run has written its record.

    Args:
        name: of the command.
        record: the file that a run writes as soon as it can be resumed.
        settings: the YAML file of its settings.
    """
    try:
        yield
    except KeyboardInterrupt:
        if record.is_file():
            command = ["asr-doge", *name.split(), "--config", str(settings), "--resume_from", "latest"]
            print(f"\nstopped; go on with: {shlex.join(command)}", file=sys.stderr)
        raise
