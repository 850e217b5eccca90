"""Compressed checkpoints are served, not only saved: made by the command line, loaded by the real engine, asked through
the gateway, and held against what their parent answers to the same questions.

Everyday one scheme of each engine; the others are `matrix`. Every checkpoint is made once a session.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from engines_under_test import CHECKPOINT, EMBEDDED, ENGINES, MODEL, EngineUnderTest, free_port, served_by
from stack_under_test import ROOT, RunningStack, stack_of

COMPRESS = ROOT / ".venvs/compress/bin/penstock"
TASKS = ROOT / "compression/data/tasks.jsonl"
# What the starter answers well: on families near chance a loss could not be seen.
FAMILIES = (
    "facts_en", "facts_zh", "add", "sub", "mul", "compare", "first", "last", "reverse", "sort", "count", "upper",
    "copy", "as_json", "translate", "option_of",
)  # fmt: skip
PER_FAMILY = 8
FEW_ROWS = ("calibration.samples=32", "calibration.seq_len=256")
VLLM = next(engine for engine in ENGINES if engine.profile == "vllm")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not COMPRESS.exists(), reason="the compressor is not installed; `make compressor` does it"),
]


@dataclass(frozen=True)
class Case:
    """`scheme`, `most_bits`: what /v1/models must say; `may_lose`: points of accuracy below the parent, on 128
    questions; `agrees`: the least share of answers that are the parent's, word for word."""

    engine: EngineUnderTest
    recipe: str
    scheme: str
    most_bits: float
    may_lose: float = 0.02
    agrees: float = 0.95
    changes: tuple[str, ...] = ()
    is_everyday: bool = False
    args: tuple[str, ...] = field(default=())

    def param(self) -> Any:
        plain = self.engine.param()
        marks = [*plain.marks, *(() if self.is_everyday else (pytest.mark.matrix,))]
        return pytest.param(self, id="-".join((self.engine.name, self.recipe, *self.changes)), marks=marks)


CASES = [
    Case(VLLM, "gptq-w4a16", "W4A16", 8.0, 0.05, 0.85, is_everyday=True),
    Case(VLLM, "gptq-w8a8", "W8A8", 10.6),
    Case(VLLM, "gptq-w4a16", "W4A16", 8.0, 0.05, 0.85, changes=("export.format=gptq",)),
    Case(VLLM, "awq-w4a16", "W4A16_ASYM", 8.0, 0.05, 0.85),
    Case(VLLM, "fp8-dynamic", "FP8_DYNAMIC", 10.6, agrees=0.9),
    Case(EMBEDDED, "gguf-q4-0", "GGUF_Q4_0", 5.3, 0.05, 0.85, is_everyday=True),
    Case(EMBEDDED, "gguf-q8-0", "GGUF_Q8_0", 8.6),
    Case(EMBEDDED, "wanda-50", "BF16", 16.1, 0.25, 0.6),
]


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A checkpoint of the starter by a recipe, made by the command line when first asked for."""
    root = tmp_path_factory.mktemp("compressed")
    done: dict[tuple[str, ...], Path] = {}

    def made(recipe: str, *changes: str) -> Path:
        key = (recipe, *changes)
        if key not in done:
            out = root / "-".join(key)
            compress(recipe, out, *changes)
            done[key] = out
        return done[key]

    return made


def compress(recipe: str, out: Path, *changes: str) -> None:
    sets = [part for change in (*FEW_ROWS, *changes) for part in ("--set", change)]
    command = [str(COMPRESS), "compress", str(CHECKPOINT), "--recipe", recipe, "--out", str(out), "--no-quality", *sets]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in TASKS.read_text("utf-8").splitlines()]
    return [row for family in FAMILIES for row in [row for row in rows if row["family"] == family][:PER_FAMILY]]


@pytest.fixture(scope="session")
def parent_says(questions: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the embedded engine: the others give the same greedy text (test_conformance.py)."""
    with served_by(EMBEDDED, tmp_path_factory.mktemp("parent")) as stack:
        return answers(stack, questions)


def answers(stack: RunningStack, questions: list[dict[str, Any]]) -> list[str]:
    with OpenAI(base_url=stack.base_url, api_key="none", max_retries=0, timeout=120) as client:

        def one(row: dict[str, Any]) -> str:
            asked = {"model": MODEL, "messages": row["messages"], "temperature": 0, "max_tokens": 48}
            answer = client.chat.completions.create(**asked)
            return (answer.choices[0].message.content or "").strip()

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, questions))


def accuracy(said: list[str], questions: list[dict[str, Any]]) -> float:
    return sum(text == row["answer"] for text, row in zip(said, questions, strict=True)) / len(questions)


@pytest.fixture(scope="module", params=[case.param() for case in CASES])
def served(request: pytest.FixtureRequest, make: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The case, its checkpoint and the stack that serves it."""
    case: Case = request.param
    folder = make(case.recipe, *case.changes)
    run = tmp_path_factory.mktemp(case.engine.name)
    with served_by(case.engine, run, "--model", str(folder), *case.args) as stack:
        yield case, folder, stack


def test_it_answers_nearly_as_its_parent_does(
    served: tuple[Case, Path, RunningStack], questions: list[dict[str, Any]], parent_says: list[str]
) -> None:
    case, _, stack = served
    said = answers(stack, questions)
    parent = accuracy(parent_says, questions)
    assert parent > 0.9, "these questions are chosen because the parent can answer them"
    agreement = sum(a == b for a, b in zip(said, parent_says, strict=True)) / len(said)
    print(
        f"{case.engine.name} {case.recipe} {case.changes}: {accuracy(said, questions):.4f} {agreement:.4f} {parent:.4f}"
    )
    assert accuracy(said, questions) >= parent - case.may_lose
    assert agreement >= case.agrees


def test_models_shows_how_it_was_made(served: tuple[Case, Path, RunningStack]) -> None:
    case, folder, stack = served
    manifest = json.loads((folder / "penstock.json").read_text("utf-8"))
    card = httpx.get(f"{stack.base_url}/models/{MODEL}", timeout=30).json()
    facts = card["penstock"]
    assert card["max_model_len"] == 2048
    assert (facts["recipe"], facts["scheme"]) == (case.recipe, case.scheme)
    assert facts["bits_per_weight"] == manifest["bits_per_weight"] <= case.most_bits
    assert facts["size_bytes"] == manifest["size_bytes"]
    assert facts["sparsity"] == manifest["sparsity"]
    assert facts["parent"]["name"] == manifest["parent"]["name"]
    listed = httpx.get(f"{stack.base_url}/models", timeout=30).json()["data"][0]["penstock"]
    assert {key: listed[key] for key in ("recipe", "scheme", "bits_per_weight", "size_bytes")} == {
        key: facts[key] for key in ("recipe", "scheme", "bits_per_weight", "size_bytes")
    }


@pytest.mark.parametrize(
    ("profile", "recipe", "changes", "word"),
    [
        ("vllm/cpu", "rtn-w4a16", ("params.scheme=W3A16",), "no kernels for W3A16"),
        ("vllm/cpu", "rtn-w8a16", (), "kernels for W8A16 run on GPU only"),
        ("vllm/cpu", "gguf-q4-0", (), "quantized as gguf"),
        ("openvino", "rtn-w4a16", (), "quantized as compressed-tensors"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused_before_anything_starts(
    make: Make, tmp_path: Path, profile: str, recipe: str, changes: tuple[str, ...], word: str
) -> None:
    folder = make(recipe, *changes)
    with stack_of(
        tmp_path, "--engine", profile, "--model", str(folder), "--name", MODEL, "--port", str(free_port())
    ) as stack:
        assert stack.exit_code() == 1
        assert word in stack.output
        assert "cannot be served by" in stack.output
        started = {path.stem for path in stack.run_dir.glob("logs/*.log")}
        assert started <= {"gateway-check", "setup-vllm"}, "the check came first"
