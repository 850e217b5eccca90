"""What a checkpoint lost: perplexity, task accuracy, divergence from its parent, each with its protocol."""


def main_measure(argv: list[str]) -> int:
    """`penstock compress measure ...`; torch is loaded only then."""
    from compressor.quality.command import main_measure as run

    return run(argv)
