"""The compressor: a checkpoint and a recipe in, a smaller checkpoint and what it lost out. docs/compression.md."""
