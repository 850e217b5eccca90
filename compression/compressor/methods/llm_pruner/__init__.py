"""LLM-Pruner: whole heads and MLP channels removed by their Taylor importance."""
