"""Running a trained model: recordings to text, and the encoder over a corpus."""

from asr_doge.inference.transcription import FailedTranscription, Transcriber, Transcription, load, transcribe

__all__ = ["FailedTranscription", "Transcriber", "Transcription", "load", "transcribe"]
