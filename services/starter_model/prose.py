"""Free documentation text: the docstrings and help topics of the running Python's standard library (PSF licence).

Source files are parsed, never imported. The text differs a little between Python versions, so the manifest records
the version and a hash. One piece in sixteen, by hash, is held out for perplexity.
"""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

SKIPPED = frozenset(
    ("test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__", "ensurepip", "pydoc_data")
)
SHORTEST = 120
PIECE = 1200


def pieces() -> Iterator[str]:
    """Every piece of prose in a fixed order, at most about 1,200 characters each, cut between paragraphs."""
    for text in _texts():
        kept, size = [], 0
        for paragraph in text.split("\n\n"):
            kept.append(paragraph)
            size += len(paragraph)
            if size >= PIECE:
                yield "\n\n".join(kept)
                kept, size = [], 0
        if size >= SHORTEST:
            yield "\n\n".join(kept)


def held_out(piece: str) -> bool:
    return hashlib.sha256(piece.encode()).digest()[0] % 16 == 0


def split() -> tuple[list[str], list[str]]:
    """(training pieces, held-out pieces). A text that occurs twice in the library is kept once."""
    unique = dict.fromkeys(pieces())
    return [p for p in unique if not held_out(p)], [p for p in unique if held_out(p)]


def _texts() -> Iterator[str]:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    yield from (topics[name].strip() for name in sorted(topics))
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED.intersection(path.relative_to(root).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= SHORTEST:
                yield inspect.cleandoc(text)
