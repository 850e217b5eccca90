"""SliceGPT: the residual stream rotated to its principal axes, and its last dimensions deleted."""
