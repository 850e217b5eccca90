"""Comparisons from manifests: what is beside each other compares, and the page stands by itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import BadCheckpointError
from compressor.report import main_compare
from compressor.report.compare import BadServedError, compare
from compressor.report.page import as_html, lead
from compressor.report.plots import plots
from starter import STARTER

PROTOCOL = {"dataset": "penstock-prose", "ctx": 256}
TASKS = {"per_family": 20, "seed": 0}


def checkpoint(folder: Path, **facts: Any) -> Path:
    """A folder with a manifest alone: all that a comparison reads."""
    manifest = {
        "penstock_manifest": 1,
        "name": folder.name,
        "parent": {"name": "base", "sha256": "0" * 64, "path_name": "base", "hash_of": "penstock.json"},
        "method": "gptq",
        "scheme": "W4A16",
        "bits_per_weight": 5.5,
        "bits_per_linear_weight": 4.1,
        "sparsity": 0.0,
        "parameters": 2_886_400,
        "removed_parameters": 0,
        "size_bytes": 2_000_000,
        "calibration": {"file": "calibration.jsonl", "samples": 8, "seq_len": 128, "seed": 0},
        "tools": {"torch": "2.13.0"},
        "seconds": 12.5,
        "peak_bytes": 5 * 10**8,
        "recipe": {"name": "gptq-w4a16", "steps": [{"method": "gptq"}]},
        "gate": {"metric": "perplexity", "limit": 0.05, "value": 0.03, "passed": True, "reason": "grew by 3 %"},
        "served_by": {"vllm": "on CPU"},
        "layers": {
            "model.layers.0": {"output_error": 1e-4},
            "model.layers.1": {"output_error": 3e-4},
            "model.layers.0.mlp.up_proj": {"weights": 100, "zeros": 0, "output_error": 9.0},
        },
        "quality": quality(20.6),
    }
    folder.mkdir()
    (folder / "penstock.json").write_text(json.dumps(manifest | facts), "utf-8")
    return folder


def quality(perplexity: float, protocol: dict[str, Any] = PROTOCOL) -> dict[str, Any]:
    return {
        "perplexity": {"value": perplexity, "protocol": protocol},
        "accuracy": {"mean": 0.7, "families": {"copy": 1.0}, "protocol": TASKS},
        "kl": {"mean": 0.012, "largest": 1.0, "protocol": PROTOCOL},
        "agreement": {"value": 0.95, "protocol": PROTOCOL},
        "parent": {
            "perplexity": {"value": 20.0, "protocol": PROTOCOL},
            "accuracy": {"mean": 0.75, "families": {"copy": 1.0}, "protocol": TASKS},
        },
    }


def base(folder: Path) -> Path:
    """A parent whose own manifest measured something else."""
    facts = {"method": "trained", "scheme": "BF16", "bits_per_weight": 16.0, "bits_per_linear_weight": None}
    figures = {"quality": {"prose": {"perplexity": 17.7}}, "gate": None, "layers": {}, "size_bytes": 5_000_000}
    return checkpoint(folder, **facts, **figures, parent=None, served_by={}, calibration=None)


# ---------------------------------------------------------------- figures
def test_a_child_is_compared_with_its_parent_in_the_list(tmp_path: Path) -> None:
    found = compare([base(tmp_path / "base"), checkpoint(tmp_path / "child")])
    parent, child = found["checkpoints"]
    assert found["reference"] == "base"
    assert (parent["perplexity"], parent["accuracy"]) == (20.0, 0.75)  # as its child's run measured it
    assert child["size_ratio"] == 2.5
    assert child["perplexity_growth"] == pytest.approx(0.03)
    assert child["accuracy_lost"] == pytest.approx(0.05)
    assert child["blocks"] == [1e-4, 3e-4]
    assert found["notes"] == []


def test_figures_of_different_protocols_are_not_set_against_each_other(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", quality=quality(3.0, {"dataset": "wikitext", "ctx": 2048}))
    found = compare([base(tmp_path / "base"), checkpoint(tmp_path / "child"), other])
    assert found["checkpoints"][2]["perplexity_growth"] is None
    assert found["checkpoints"][2]["accuracy_lost"] is not None
    assert any("perplexity was measured by different protocols" in note for note in found["notes"])


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    found = compare([checkpoint(tmp_path / "blind", quality=None, gate=None)])
    assert found["reference"] is None
    assert found["notes"] == ["not measured in this way: blind"]
    assert lead(found) == "No gate was judged: nothing says which loss is acceptable."


def test_the_smallest_within_its_gate_comes_first_in_words(tmp_path: Path) -> None:
    failed = {"metric": "perplexity", "limit": 0.05, "value": 0.5, "passed": False, "reason": "grew by 50 %"}
    small = checkpoint(tmp_path / "small", size_bytes=1_000_000, gate=failed)
    found = compare([base(tmp_path / "base"), checkpoint(tmp_path / "child"), small])
    assert lead(found) == (
        "The smallest within its gate is child: 2.00 MB, 2.5 times smaller, perplexity +3.0%, accuracy -0.050."
    )
    assert lead(compare([small])) == "None is within its gate."


def test_two_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = compare([checkpoint(tmp_path / "a" / "w4", name="w4"), checkpoint(tmp_path / "b" / "w4", name="w4")])
    assert [row["name"] for row in found["checkpoints"]] == ["a/w4", "b/w4"]


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match=r"penstock\.json"):
        compare([tmp_path])


# ---------------------------------------------------------------- the page
class Page(HTMLParser):
    """Open tags that must be closed, everything that would be fetched, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img", "input", "hr"):
            self.open.append(tag)
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in self.open:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def comparison(tmp_path: Path) -> dict[str, Any]:
    served = tmp_path / "served.json"
    rows = [
        {"checkpoint": "base", "engine": "vllm", "tokens_per_s": {"1": 100, "8": 400}, "rss_bytes": 10**9},
        {"checkpoint": "child", "engine": "vllm", "tokens_per_s": {"1": 150, "8": 650}},
        {"checkpoint": "stranger", "engine": "vllm", "tokens_per_s": {"1": 1}},
    ]
    served.write_text(json.dumps(rows))
    folders = [base(tmp_path / "base"), checkpoint(tmp_path / "child"), checkpoint(tmp_path / "<b>&sharp")]
    return compare(folders, served)


def test_the_page_is_whole_and_fetches_nothing(comparison: dict[str, Any]) -> None:
    html = as_html(comparison)
    page = Page(html)
    assert page.open == []
    assert page.fetched == []
    assert "<script" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_the_page_says_what_the_figures_say(comparison: dict[str, Any]) -> None:
    text = re.sub(r"\s+", " ", Page(as_html(comparison)).text)
    for told in ("2.00 MB", "2.50× smaller", "20.60", "+3.0%", "0.700", "-0.050", "0.0120", "95.0%", "passed"):
        assert told in text
    assert "650" in text
    assert "stranger" not in text
    assert "<b>&sharp" in text  # a name is text, whatever it looks like
    assert "dataset 'penstock-prose', ctx 256" in text


def test_every_plot_has_the_numbers_of_the_table(comparison: dict[str, Any]) -> None:
    drawn = plots(comparison)
    assert list(drawn) == [
        "Bits against perplexity",
        "Size of the weights",
        "Distance from the parent",
        "Output error, block by block",
        "Tokens per second",
    ]
    for title, svg in drawn.items():
        assert svg.startswith("<svg")
        assert 'viewBox="' in svg
        assert ">2<" in svg or ">2 · vllm<" in svg, title
    assert ">650  (8 streams)<" in drawn["Tokens per second"]
    assert plots(comparison) == drawn


def test_plots_without_figures_are_left_out(tmp_path: Path) -> None:
    found = compare([checkpoint(tmp_path / "blind", quality=None, layers={})])
    assert list(plots(found)) == ["Size of the weights"]
    assert "Served" not in Page(as_html(found)).text.split("How each")[0]


def test_a_broken_models_figures_fit_the_page(tmp_path: Path) -> None:
    found = compare([base(tmp_path / "base"), checkpoint(tmp_path / "broken", quality=quality(1e304))])
    assert "1.0e+304" in Page(as_html(found)).text


def test_rows_of_the_served_bench_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = {"model": "starter", "recipe": "gptq-w4a16", "engine": "vllm", "single": 90.0, "eight": 500.0}
    path.write_text(json.dumps([row | {"memory_bytes": 10**9, "scheme": "W4A16"}]))
    found = compare([checkpoint(tmp_path / "starter-gptq-w4a16")], path)
    assert found["served"] == [
        {
            "checkpoint": "starter-gptq-w4a16",
            "engine": "vllm",
            "tokens_per_s": {"1": 90.0, "8": 500.0},
            "rss_bytes": 10**9,
        }
    ]


def test_figures_of_serving_in_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "served.json"
    path.write_text('[{"checkpoint": "base"}]')
    with pytest.raises(BadServedError, match=r"served\.json"):
        compare([base(tmp_path / "base")], path)


def test_the_command_writes_page_and_json_and_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(base(tmp_path / "base")), str(checkpoint(tmp_path / "child"))]
    html, told = tmp_path / "report.html", tmp_path / "report.json"
    assert main_compare([*folders, "--html", str(html), "--json", str(told)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["checkpoint", "bits", "size", "perplexity", "accuracy", "KL", "gate"]
    assert shown[2].split()[:2] == ["child", "5.50"]
    assert "20.600 (+3.0%)" in shown[2]
    assert json.loads(told.read_text("utf-8"))["checkpoints"][1]["name"] == "child"
    assert html.read_text("utf-8").startswith("<!doctype html>")


def test_the_starters_own_manifest_can_be_shown() -> None:
    (row,) = compare([STARTER])["checkpoints"]
    assert (row["name"], row["bits_per_weight"], row["perplexity"]) == ("starter", 16.0, None)
