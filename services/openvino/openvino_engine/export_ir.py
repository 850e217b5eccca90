"""A GGUF model as an OpenVINO IR folder: the form in which the library takes drafts, and a plain model can be read."""

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openvino.opset13
import openvino_genai

import openvino


def export_ir(gguf_path: Path, cache_dir: Path) -> Path:
    """The folder in ``cache_dir`` for this content, written now unless it is there."""
    with gguf_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    out = cache_dir / f"ir-{digest[:16]}"
    if (out / "openvino_model.xml").exists():
        return out
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".ir-") as partial:
        _export(gguf_path, Path(partial))
        with contextlib.suppress(OSError):  # another process was first, with the same content
            Path(partial).rename(out)
            Path(partial).mkdir()
    return out


def _export(gguf_path: Path, folder: Path) -> None:
    raw = folder / "raw"
    raw.mkdir()
    source = raw / "model.gguf"
    source.symlink_to(gguf_path.resolve())  # the library writes beside the file it reads
    tokenizer = openvino_genai.Tokenizer(str(source), enable_save_ov_model=True)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 16
    openvino_genai.ContinuousBatchingPipeline(str(source), tokenizer, scheduler, "CPU", enable_save_ov_model=True)
    model = openvino.Core().read_model(str(raw / "openvino_model.xml"))
    _restore_rotary_frequencies(model, gguf.GGUFReader(gguf_path))
    openvino.save_model(model, str(folder / "openvino_model.xml"), compress_to_fp16=False)
    del model  # it maps the raw weights
    for path in raw.glob("openvino_*tokenizer.*"):
        path.rename(folder / path.name)
    for path in raw.iterdir():
        path.unlink()
    raw.rmdir()


def _restore_rotary_frequencies(model: Any, reader: gguf.GGUFReader) -> None:
    """The library saves every constant as f16, the rotary frequencies too: log-probabilities move by 0.03 then."""
    arch = reader.get_field("general.architecture").contents()
    size = reader.get_field(f"{arch}.attention.key_length") or reader.get_field(f"{arch}.rope.dimension_count")
    base = reader.get_field(f"{arch}.rope.freq_base")
    if size is None:
        return
    head_dim = int(size.contents())
    theta = float(base.contents()) if base is not None else 10_000.0
    exact = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f16:
            continue
        shape = tuple(node.get_output_shape(0))
        if np.prod(shape) == exact.size and np.allclose(node.get_data().ravel(), exact, rtol=2e-3, atol=1e-6):
            _replace(node, openvino.opset13.constant(exact.reshape(shape).astype(np.float32)))


def _replace(half: Any, full: Any) -> None:
    """Put ``full`` where ``half``, converted to f32, is read."""
    for convert in half.output(0).get_target_inputs():
        for reader in convert.get_node().output(0).get_target_inputs():
            reader.replace_source_output(full.output(0))
