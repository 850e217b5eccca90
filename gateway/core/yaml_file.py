"""A YAML file that a person wrote, as plain data: no key twice, and its paths relative to the file, not to where the
program happens to run."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml


def read_yaml(file: Path, paths: Sequence[Sequence[str]]) -> Any:
    """`paths`: where in it paths are, key by key, `*` any key. Raises OSError, UnicodeDecodeError, YAMLError."""
    data = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506  (a SafeLoader)
    for keys in paths:
        _anchor(data, keys, file.absolute().parent)
    return data


def _anchor(node: Any, keys: Sequence[str], folder: Path) -> None:
    """What is not as it should be stays as it is: judging is the reader's business."""
    if not isinstance(node, dict):
        return
    for key in list(node) if keys[0] == "*" else [keys[0]] if keys[0] in node else []:
        if len(keys) > 1:
            _anchor(node[key], keys[1:], folder)
        elif isinstance(node[key], str):
            node[key] = str(folder / node[key])


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; a configuration should not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            fault = "is no name" if not isinstance(key, Hashable) else "appears twice" if key in seen else None
            if fault is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {fault}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
