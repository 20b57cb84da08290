"""Errors that a user can mend.

Promises: the message of every `ASRDogeError` is one plain line that names the file, flag or value at fault and the
remedy. The command line prints that line, without a traceback, and exits with code 2. Any other exception is a defect
in this package and keeps its traceback.
"""

_CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


class ASRDogeError(Exception):
    """Base of every error that a user can mend."""

    def __init__(self, message: str = "") -> None:
        super().__init__(in_one_line(message))


def in_one_line(text: str) -> str:
    """The text with its control characters escaped, since the name of a file may hold any, and line breaks too."""
    return text.translate(_CONTROLS)


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, for use in our messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


class AudioError(ASRDogeError):
    """A recording that cannot be read, or holds no usable samples."""


class DamagedAudioError(AudioError):
    """A recording that is truncated or corrupt. What is there of it was read before this is raised."""


class DataError(ASRDogeError):
    """A corpus, manifest or feature cache that is missing, malformed or stale."""


class StoreError(DataError):
    """A folder or store that cannot be read or written, perhaps only now or from this machine."""


class CheckpointError(ASRDogeError):
    """A model, tokenizer or checkpoint that is missing, incomplete or of another architecture."""


class ConfigError(ASRDogeError):
    """A flag or configuration value that cannot be used."""


class TrainingError(ASRDogeError):
    """A training run that cannot go on; what it saved before is whole."""
