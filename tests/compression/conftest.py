"""These tests run in the compressor's own environment (`make test` runs both): elsewhere there is no torch."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
