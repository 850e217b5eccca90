"""Number formats and the linear algebra under every method: tensors in, tensors out; no model, no file."""
