"""What a checkpoint lost: perplexity, task accuracy, divergence from its parent, each with its protocol."""
