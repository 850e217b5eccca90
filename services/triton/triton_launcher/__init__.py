"""Renders a Triton model repository from one small YAML, and starts the real tritonserver on it."""
