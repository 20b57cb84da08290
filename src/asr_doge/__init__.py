"""ASR-Doge: parameter-efficient speech recognition.

A frozen speech encoder, a small adapter and a small language model. `asr_doge.transcribe("a.mp3")` needs nothing
else; `asr_doge.load()` keeps the model for many calls. Importing this is cheap: torch and transformers are imported on
first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr_doge.inference.results import Transcription
    from asr_doge.inference.transcription import Transcriber, load, transcribe

__version__ = version("asr-doge")
__all__ = ["Transcriber", "Transcription", "__version__", "load", "transcribe"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "results" if name == "Transcription" else "transcription"
        return getattr(import_module(f"asr_doge.inference.{module}"), name)
    raise AttributeError(f"module 'asr_doge' has no attribute '{name}'")
