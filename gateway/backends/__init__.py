"""How to speak to each engine."""
