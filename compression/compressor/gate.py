"""Whether a checkpoint lost more than its recipe allows: a verdict with the reason in one line."""

from collections.abc import Mapping
from typing import Any

from compressor.recipe import GateSettings


def judge(gate: GateSettings | None, quality: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """None without a gate. `passed` is None when nothing was measured.

    `value`: perplexity's relative growth, accuracy points lost, or nats of divergence; lower is better.
    """
    if gate is None:
        return None
    verdict = {"metric": gate.metric, "limit": gate.max_regression, "value": None, "passed": None}
    if quality is None:
        return verdict | {"reason": "quality was not measured"}
    value = _lost(gate.metric, quality)
    if value is None:
        return verdict | {"reason": f"{gate.metric} was not measured"}
    passed = value <= gate.max_regression
    words = {"perplexity": f"perplexity grew by {value:.2%}", "accuracy": f"accuracy fell by {value:.3f}"}
    told = words.get(gate.metric, f"{gate.metric} is {value:.4f}")
    reason = f"{told}, {'within' if passed else 'more than'} the limit of {gate.max_regression:g}"
    return verdict | {"value": value, "passed": passed, "reason": reason}


def _lost(metric: str, quality: Mapping[str, Any]) -> float | None:
    if metric == "kl":
        found = quality.get("kl")
        return None if found is None else float(found["mean"])
    now, before = quality.get(metric), quality.get("parent", {}).get(metric)
    if now is None or before is None:
        return None
    if metric == "perplexity":
        return float(now["value"] / before["value"] - 1)
    return float(before["mean"] - now["mean"])
