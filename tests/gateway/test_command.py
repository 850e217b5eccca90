"""`penstock gateway`: check, key, schema, and starting wrong."""

import hashlib
import json
import socket
from pathlib import Path

import pytest
import yaml

from gateway.__main__ import main
from gateways import config, start_gateway


def write(tmp_path: Path, settings: dict[str, object]) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_check_says_what_a_configuration_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(tmp_path, config("http://127.0.0.1:1"))]) == 0
    assert "m -> main (vllm): http://127.0.0.1:1" in capsys.readouterr().out


def test_check_names_the_engines_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(tmp_path, config("http://a", deployment={"engine": "vlm"}))]) == 2
    error = capsys.readouterr().err
    assert "models.m.deployments.main.engine" in error
    assert "vllm" in error


def test_a_new_key_fits_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "alice"]) == 0
    out = capsys.readouterr().out
    key = next(word for word in out.split() if word.startswith("sk-penstock-"))
    assert f"alice: {{sha256: {hashlib.sha256(key.encode()).hexdigest()}}}" in out


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "models" in json.loads(capsys.readouterr().out)["properties"]


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"cannot listen on 127.0.0.1:{port}"):
            start_gateway(config("http://127.0.0.1:1", server={"port": port}))
