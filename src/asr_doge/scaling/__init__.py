"""The commands' stages on an engine, one process or a Ray cluster: lists, shards, commits, poison and resume."""
