"""The failures a person is told about in words; apart so that every module can raise them."""


class LauncherError(Exception):
    """Says what is wrong and what to do. `exit_code`: 1 = it failed, 2 = the file or the command line is wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
