"""The `penstock` command: finds the programs, runs the one that was named."""
