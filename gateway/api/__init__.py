"""HTTP and nothing else: parses what clients send, frames what they receive."""
