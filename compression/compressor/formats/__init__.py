"""How encoded weights are laid out on disk for engines: one file per format."""
