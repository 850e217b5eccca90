"""The gate: within the limit or not, and why, in one line."""

from typing import Any

import pytest

from compressor.gate import judge
from compressor.recipe import GateSettings

QUALITY: dict[str, Any] = {
    "perplexity": {"value": 11.0},
    "accuracy": {"mean": 0.7},
    "kl": {"mean": 0.02},
    "parent": {"perplexity": {"value": 10.0}, "accuracy": {"mean": 0.75}},
}


@pytest.mark.parametrize(
    ("metric", "limit", "passed", "reason"),
    [
        ("perplexity", 0.11, True, "perplexity grew by 10.00%, within the limit of 0.11"),
        ("perplexity", 0.05, False, "perplexity grew by 10.00%, more than the limit of 0.05"),
        ("accuracy", 0.06, True, "accuracy fell by 0.050, within the limit of 0.06"),
        ("accuracy", 0.01, False, "accuracy fell by 0.050, more than the limit of 0.01"),
        ("kl", 0.02, True, "kl is 0.0200, within the limit of 0.02"),
    ],
)
def test_the_verdict_says_why(metric: Any, limit: float, passed: bool, reason: str) -> None:
    verdict = judge(GateSettings(metric=metric, max_regression=limit), QUALITY)
    assert verdict is not None
    assert (verdict["passed"], verdict["reason"]) == (passed, reason)


def test_what_was_not_measured_passes_no_gate_and_fails_none() -> None:
    gate = GateSettings(max_regression=0.1)
    assert judge(None, QUALITY) is None
    for quality in (None, {"accuracy": {"mean": 0.5}}):
        verdict = judge(gate, quality)
        assert verdict is not None
        assert verdict["passed"] is None
        assert "not measured" in verdict["reason"]
