"""The generated code under gateway/protos is what its .proto files say."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_the_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    protos = [str(path.relative_to(REPO)) for path in sorted((REPO / "gateway/protos").rglob("*.proto"))]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *protos], cwd=REPO, check=True)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*")}
    committed = {
        path.relative_to(REPO) for path in (REPO / "gateway/protos").rglob("*_pb2*.py*") if path.suffix != ".pyc"
    }
    assert written == committed, "make protos"
    for name in written:
        assert (tmp_path / name).read_text() == (REPO / name).read_text(), f"{name} is stale: make protos"
