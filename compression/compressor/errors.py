"""One tree of errors: each says what is wrong and what to do, and how the command ends."""


class CompressorError(Exception):
    """Shown to the person as it is, without a traceback."""

    exit_code = 1


class BadCheckpointError(CompressorError):
    """The input is no checkpoint, or a broken one: the message names the file."""


class BadRecipeError(CompressorError):
    """A recipe that cannot be followed: the message names the path in it and, for a typo, the nearest key."""

    exit_code = 2


class BadCalibrationError(CompressorError):
    """Calibration rows that cannot be used: the message names file and line."""


class CannotServeError(CompressorError):
    """The named engine cannot serve what the recipe makes: said before the work starts."""


class NoSpaceError(CompressorError):
    """Not enough room on the disk, seen before or while writing; nothing half-written is left under the final name."""


class GateError(CompressorError):
    """The checkpoint was made, and lost more than its recipe allows."""

    exit_code = 3
