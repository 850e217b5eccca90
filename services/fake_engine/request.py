"""One HTTP request as the parser found it: what connection.py fills and everything else reads."""

from dataclasses import dataclass, field

from fake_engine.script import GlobalScript


@dataclass(slots=True)
class Request:
    """`scripted` is the global script that was in force when the headers arrived. Header names are lower-case."""

    method: str = ""
    target: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    is_http_1_0: bool = False
    keeps_alive: bool = True
    scripted: GlobalScript | None = None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)
