"""Reads stack.yaml and profiles: from bytes on disk to a model, or to a message that names the line or the key.

Apart from settings.py because the models know nothing of YAML, folders and how to word a complaint.
"""

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stack.errors import StackError
from stack.settings import Profile, StackFile

M = TypeVar("M", bound=BaseModel)
_GATEWAY_PATHS = (("telemetry", "access_log_path"), ("models", "*", "deployments", "*", "checkpoint"))
"""Paths in `gateway:`: like all in a stack file, relative to it."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's last duplicate wins silently; in a configuration that is a lost engine."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else repr(key.value))
        return super().construct_mapping(node, deep)


def read_stack(path: Path) -> StackFile:
    """The stack file at `path`; raises StackError (exit code 2) naming every wrong key."""
    stack = _model(StackFile, path)
    for keys in _GATEWAY_PATHS:
        _anchor(stack.gateway, keys, path.resolve().parent)
    return stack


def _anchor(node: Any, keys: tuple[str, ...], folder: Path) -> None:
    """The gateway reads them from another file; what is wrong there is its to judge."""
    key, *rest = keys
    if not isinstance(node, dict):
        return
    for one in list(node) if key == "*" else node.keys() & {key}:
        if rest:
            _anchor(node[one], tuple(rest), folder)
        elif isinstance(node[one], str):
            node[one] = str(folder / node[one])


def read_profile(name: str, shelf: Path, base: Path) -> Profile:
    """`openvino` or `vllm/cpu` from `shelf` (services/), or a path relative to `base`."""
    path = find_profile(name, shelf, base)
    return _validated(Profile, _extended(path, _tree(Profile, path)), path)


def _extended(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over the profile it extends: `args` after the other's command, mappings key by key, the rest instead."""
    if "extends" not in tree:
        return tree
    own = {key: value for key, value in tree.items() if key not in ("extends", "args")}
    parent = path.with_name(f"{tree['extends']}.yaml")
    base = _tree(Profile, parent)
    if "extends" in base:
        raise StackError(f"{path}: extends {parent.stem!r}, which extends another itself: one step is the limit", 2)
    merged = {key: base[key] | own[key] if _both_maps(base, own, key) else own.get(key, base.get(key))
              for key in base.keys() | own.keys()}  # fmt: skip
    return merged | {"command": [*(merged.get("command") or []), *(tree.get("args") or [])]}


def _both_maps(base: dict[str, Any], own: dict[str, Any], key: str) -> bool:
    return isinstance(base.get(key), dict) and isinstance(own.get(key), dict)


def find_profile(name: str, shelf: Path, base: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        return base / name
    engine, _, variant = name.partition("/")
    folder = shelf / engine / "profiles"
    path = folder / f"{variant or _usual(folder)}.yaml"
    if path.is_file():
        return path
    known = sorted(f"{p.parent.parent.name}/{p.stem}" for p in shelf.glob("*/profiles/*.yaml"))
    raise StackError(f"there is no profile {name!r}; known: {', '.join(known) or 'none'}; or give a path to a file", 2)


def _usual(folder: Path) -> str:
    """The profile that `engine` alone means here: gpu where there is a GPU, cpu, or the only one."""
    order = (["gpu"] if Path("/dev/nvidiactl").exists() else []) + ["cpu", "default"]
    return next((variant for variant in order if (folder / f"{variant}.yaml").is_file()), "cpu")


def _model(kind: type[M], path: Path) -> M:
    return _validated(kind, _tree(kind, path), path)


def _tree(kind: type[BaseModel], path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", 2) from error
    except UnicodeDecodeError as error:
        raise StackError(f"{path} is not UTF-8 text (byte {error.start})", 2) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise StackError(f"{path} is not YAML: {' '.join(str(error).split())}", 2) from error
    if not isinstance(tree, dict):
        raise StackError(f"{path} holds no mapping; it begins with one of: {', '.join(kind.model_fields)}", 2)
    return tree


def _validated(kind: type[M], tree: dict[str, Any], path: Path) -> M:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        complaints = "\n".join(f"  {_complaint(kind, one)}" for one in error.errors())
        raise StackError(f"{path}:\n{complaints}", 2) from error


def _complaint(kind: type[BaseModel], error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        known = _fields_at(kind, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if error["loc"] and error["loc"][-1] == "[key]":
        return f"{where}: a name is 1 to 40 of a-z 0-9 . - and begins and ends with a letter or digit"
    if error["type"] == "missing":
        return f"{where}: is missing"
    return f"{where}: {error['msg'].removeprefix('Value error, ')} (it is {error['input']!r:.60})"


def _fields_at(kind: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The keys known at a path such as ('engines', 'starter'), found through the models' annotations."""
    for part in where:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field else None
        args = getattr(inner, "__args__", ())
        candidates = [inner, *args]
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        kind = found or kind  # a map's own key (an engine's name) keeps the kind
    return list(kind.model_fields)
