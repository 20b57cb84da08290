"""Errors that a user can mend.

Promises: the message of every `ASRDogeError` is one plain line that names the file, flag or value at fault and the
remedy. The command line prints that line, without a traceback, and exits with code 2. Any other exception is a defect
in this package and keeps its traceback.
"""


class ASRDogeError(Exception):
    """Base of every error that a user can mend."""


class AudioError(ASRDogeError):
    """A recording that cannot be read, or holds no usable samples."""


class DamagedAudioError(AudioError):
    """A recording that is truncated or corrupt. What is there of it was read before this is raised."""


class DataError(ASRDogeError):
    """A corpus, manifest or feature cache that is missing, malformed or stale."""


class CheckpointError(ASRDogeError):
    """A model, tokenizer or checkpoint that is missing, incomplete or of another architecture."""


class ConfigError(ASRDogeError):
    """A flag or configuration value that cannot be used."""


class TrainingError(ASRDogeError):
    """A training run that cannot go on; what it saved before is whole."""
