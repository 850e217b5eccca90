"""Checkpoints side by side: what each weighs and what it lost, as a table, one HTML page, and JSON."""


def main_compare(argv: list[str]) -> int:
    """`penstock compress compare ...`; plots are loaded only for a page."""
    from compressor.report.command import main_compare as run

    return run(argv)
