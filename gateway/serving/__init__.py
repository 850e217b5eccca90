"""The life of a request: admit, route, attempt, relay, record."""
