"""A checkpoint as files: reading, writing whole or not at all, manifest and card. No torch model, no method."""
