"""Package `penstock`: the gateway's own services."""
