"""Load tests: a black-box client and what it measures."""
