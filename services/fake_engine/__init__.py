"""A real, tiny OpenAI server with scripted timing, tokens and faults: tests without a model."""
