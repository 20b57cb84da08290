"""Corpora, manifests, and the format of the feature cache.

Promises: each step leaves a file that other tools can read, written whole or not at all. It knows audio and text; it
knows no models and runs no encoder. What loads libraries is imported by its own name, such as
`asr_doge.data.processing`: the verbs' settings are in this room, and `--help` waits for nothing.
"""

from asr_doge.data.manifest import Utterance, read_manifest, write_manifest

__all__ = ["Utterance", "read_manifest", "write_manifest"]
