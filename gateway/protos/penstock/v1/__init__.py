"""Version 1 of the gateway's own services. Generated: `make protos`."""
