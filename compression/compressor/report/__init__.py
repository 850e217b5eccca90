"""Checkpoints side by side: a page with plots, and the same as JSON."""
