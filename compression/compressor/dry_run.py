"""What a job would do and take, said before it does: from the recipe, the tensors' shapes and the number formats.

No time is promised: it depends on the machine, and the first block of the real run tells it.
"""

from collections.abc import Iterator
from math import ceil, prod

from compressor.checkpoint.card import size
from compressor.families import family_of
from compressor.methods import registry
from compressor.numbers.grids import FloatGrid, Grid, IntegerGrid
from compressor.pipeline import CONTAINERS, Plan

_WIDTH_BITS = {"e4m3": 8, "e8m0": 8, "bfloat16": 16, "float16": 16, "float32": 32}


def forecast(plan: Plan) -> str:
    """Lines for a person, ended by a line break."""
    return "".join(f"{what:12} {told}\n" for what, told in _lines(plan))


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    job, recipe = plan.job, plan.job.recipe
    yield "model", f"{job.model}: {plan.source.config.get('model_type')}, {size(plan.source.size_bytes)}"
    yield "recipe", f"{recipe.name}: {recipe.about}".rstrip(": ")
    for number, stage in enumerate(registry.stages(plan.methods), 1):
        names = "+".join(method.name for method in stage) if isinstance(stage, list) else stage.name
        yield f"step {number}", f"{names}, {'block by block' if isinstance(stage, list) else 'the whole model'}"
    if any(method.needs_inputs for method in plan.methods):
        data = recipe.calibration
        yield "calibration", f"{data.file or 'the sample that ships'}: {data.samples} windows of {data.seq_len} tokens"
    yield from _result(plan)
    room = plan.source.size_bytes * (1 + len(registry.stages(plan.methods)))
    yield "room", f"{size(room)} on the disk of {job.out.absolute().parent}, while it works"
    yield "out", str(job.out)
    engines = "; ".join(f"{engine} ({note})" for engine, note in plan.served_by.items())
    yield "served by", engines or "no engine as it is"


def _result(plan: Plan) -> Iterator[tuple[str, str]]:
    layout = (
        plan.job.recipe.export.format
        if plan.layout != "dense" or plan.job.recipe.export.format in CONTAINERS
        else "dense"
    )
    grid = next((found.weights for method in plan.methods[::-1] if (found := getattr(method, "scheme", None))), None)
    if layout in CONTAINERS or plan.structure is not None:
        yield "result", f"{plan.scheme}, {layout}; its size is known when it is made"
        return
    if grid is None:
        yield "result", f"{plan.scheme}, {layout}, {size(plan.source.size_bytes)} at most"
        return
    bits, weights = _bits(plan, grid)
    stored = size(plan.source.size_bytes if layout == "dense" else bits // 8)
    yield "result", f"{plan.scheme}, {layout}, about {bits / weights:.2f} bits a weight, {stored}"


def _bits(plan: Plan, grid: Grid) -> tuple[int, int]:
    """Bits and weights of the whole model when every linear that is not ignored is encoded in `grid`."""
    layers = int(plan.source.config["num_hidden_layers"])
    family = family_of(plan.source.config)
    linears = {f"{family.block(index)}.{name}.weight" for index in range(layers) for name in family.linears}
    ignored = {f"{name}.weight" for name in plan.job.recipe.ignore}
    bits = weights = 0
    for name, entry in plan.source.entries.items():
        count = prod(entry.shape)
        is_encoded = name in linears and name not in ignored
        bits += _encoded_bits(entry.shape, grid) if is_encoded else entry.size_bytes * 8
        weights += count
    return bits, weights


def _encoded_bits(shape: tuple[int, ...], grid: Grid) -> int:
    outs, ins = shape
    if isinstance(grid, IntegerGrid):
        groups = outs * ceil(ins / (grid.group_size or ins))
        return outs * ins * grid.bits + groups * (16 + (0 if grid.symmetric else grid.bits))
    assert isinstance(grid, FloatGrid)
    rows, columns = grid.block[0] or outs, grid.block[1] or ins
    return outs * ins * grid.bits + ceil(outs / rows) * ceil(ins / columns) * _WIDTH_BITS[grid.scale]
