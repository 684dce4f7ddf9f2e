"""Blocks of arrays on eight devices: the same bits, and no device ever holds the whole array."""

import pathlib

from tests.end_to_end.runs import run

BLOCKS = """
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from stepaudio_jax.config import MeshConfig
from stepaudio_jax.parallel import replicated_block, make_mesh
from stepaudio_jax.parallel.processes import _gather_block

mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
values = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
values[0, :, 0] = -0.0
specs = (
    P(),
    P(None, "fsdp"),
    P(None, None, ("tensor", "fsdp")),
    P(None, "tensor", "fsdp"),
    P(None, ("data", "fsdp")),
)
blocks = (
    ((0, 0, 0), (3, 8, 16)),
    ((1, 3, 5), (2, 4, 9)),
    ((2, 7, 15), (1, 1, 1)),
    ((0, 2, 0), (1, 6, 4)),
)
dtypes = (np.float32, jnp.bfloat16, np.int8)
for spec, dtype, (starts, sizes) in itertools.product(specs, dtypes, blocks):
    array = jax.device_put(jnp.asarray(values * 9).astype(dtype), NamedSharding(mesh, spec))
    block = replicated_block(array, starts, sizes)
    assert block.sharding.is_fully_replicated
    index = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    assert np.asarray(block).tobytes() == np.asarray(array)[index].tobytes(), (spec, dtype, starts)
unsharded = jnp.asarray(values)
block = replicated_block(unsharded, (1, 2, 3), (1, 2, 3))
np.testing.assert_array_equal(block, values[1:2, 2:4, 3:6])

sharding = NamedSharding(mesh, P(None, None, ("tensor", "fsdp")))
large = jax.ShapeDtypeStruct((8, 512, 4096), jnp.float32, sharding=sharding)
compiled = _gather_block.lower(large, (0, 0, 0), (1, 512, 512), large.sharding).compile()
used = compiled.memory_analysis()
# A few blocks; a device's part is 16 MB, all of the array 67.
assert used.temp_size_in_bytes <= 4 * 4 * 512 * 512 * 4, used
assert "all-gather" not in compiled.as_text()
print("passed")
"""


def test_blocks_of_sharded_arrays(tmp_path: pathlib.Path):
    (tmp_path / "blocks.py").write_text(BLOCKS, encoding="utf-8")
    ended = run(str(tmp_path / "blocks.py"), devices=8)
    assert ended.stdout == "passed\n", ended.stderr[-3000:]
