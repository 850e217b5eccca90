"""TensorRT-LLM's word lists: [2, n], row 0 all token ids one after the other, row 1 where each word ends, then -1."""

from openvino_engine.errors import invalid
from triton_models.tensors import Array


def read_words(array: Array | None, name: str) -> tuple[tuple[int, ...], ...]:
    """The words, each a run of token ids; a leading batch dimension of 1 is dropped. Raises ApiError."""
    if array is None or array.size == 0:
        return ()
    rows = array.reshape(array.shape[-2:]) if array.ndim == 3 and array.shape[0] == 1 else array
    if rows.ndim != 2 or rows.shape[0] != 2:
        raise invalid(name, f"{name!r} must have the shape [2, n], not {list(array.shape)}")
    ids, ends = rows.tolist()
    words, begin = [], 0
    for end in ends:
        if end < 0:
            break
        if not begin <= end <= len(ids):
            raise invalid(name, f"{name!r} has the offset {end} after {begin}: offsets rise up to {len(ids)}")
        words.append(tuple(ids[begin:end]))
        begin = end
    return tuple(word for word in words if word)
