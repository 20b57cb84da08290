"""Corpora, manifests, and the format of the feature cache.

Promises: each step writes files that other tools can read, each completely or not at all. It knows audio and text; it
knows no models and runs no encoder. Modules that load libraries are imported by their own names, such as
`asr_doge.data.processing`, since the commands' settings are in this package and `--help` must be fast.
"""

from asr_doge.data.manifest import Utterance, read_manifest, write_manifest

__all__ = ["Utterance", "read_manifest", "write_manifest"]
