"""The checkpoint on disk: restored by plain Orbax, sharded, damaged, and exported."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from stepaudio_jax import hub
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.checkpoint import parameters_directory
from stepaudio_jax.hub.tensor_map import flatten, parameter_shapes, unflatten
from stepaudio_jax.text import Tokenizer
from tests.hub.folders import SMALL, as_numpy, assert_same_tensors, random_folder, with_decoder

RESTORE = """
import sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import NamedSharding, PartitionSpec as P
from stepaudio_jax import hub
checkpoint, source = sys.argv[1:]
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
config = hub.read_model_config(checkpoint)
from stepaudio_jax.models import abstract_parameters
def shard(leaf):
    axes = ["tensor" if size % 2 == 0 else None for size in leaf.shape[-1:]]
    rows = ["fsdp" if size % 4 == 0 else None for size in leaf.shape[-2:-1]]
    return NamedSharding(mesh, P(*[None] * (leaf.ndim - 2), *rows, *axes))
shardings = jax.tree.map(shard, abstract_parameters(config))
assert sum(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)) > 30
def place(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=sharding)
abstract = jax.tree.map(place, abstract_parameters(config), shardings)
plain = ocp.load(checkpoint + "/parameters", abstract)
ours = hub.read_parameters(checkpoint, dtype="float32", shardings=shardings)
direct = hub.read_parameters(source, dtype="float32", shardings=shardings)
def check_sharding(leaf, sharding):
    assert leaf.sharding == sharding, leaf.sharding
for tree in (plain, ours, direct):
    jax.tree.map(check_sharding, tree, shardings)
    jax.tree.map(np.testing.assert_array_equal, tree, plain)
flat = hub.tensor_map.flatten(plain)
np.savez(checkpoint + ".npz", **{"/".join(path): leaf for path, leaf in flat.items()})
"""


def test_restores_sharded_on_eight_devices(tmp_path):
    """Plain Orbax and both readers of ours give the same values, placed as asked."""
    source = random_folder(tmp_path / "source", max_shard_bytes=100_000)
    checkpoint = tmp_path / "checkpoint"
    hub.import_weights(source, checkpoint)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", RESTORE, str(checkpoint), str(source)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    sharded = np.load(f"{checkpoint}.npz")
    whole = flatten(hub.read_parameters(source, dtype="float32"))
    assert {"/".join(path) for path in whole} == set(sharded)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(sharded["/".join(path)], leaf)


SAVE = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import NamedSharding, PartitionSpec as P
from stepaudio_jax import hub
from stepaudio_jax.hub import orbax_io
from stepaudio_jax.text import Tokenizer
source, target = sys.argv[1:]
orbax_io._MAX_CHUNK_BYTES = 2048
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
config = hub.read_model_config(source)
def place(leaf):
    axes = ["tensor" if leaf.shape[-1] % 2 == 0 else None]
    rows = ["fsdp" if size % 4 == 0 else None for size in leaf.shape[-2:-1]]
    spec = P(*[None] * (leaf.ndim - 2), *rows, *axes)
    zeros = leaf.ndim == 1  # chunks of zeros are stored like others
    return jax.device_put(np.zeros_like(leaf) if zeros else leaf, NamedSharding(mesh, spec))
parameters = jax.tree.map(place, hub.read_parameters(source))
assert sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(parameters)) > 30
hub.save_checkpoint(target, parameters, config, Tokenizer.byte_level(), source="a test")
assert hub.inspect_folder(target).problems == ()
read = hub.read_parameters(target)
jax.tree.map(np.testing.assert_array_equal, read, parameters)
dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (read, parameters)]
assert dtypes[0] == dtypes[1]
hub.export_weights(target, target + ".exported")
assert hub.inspect_folder(target + ".exported").problems == ()
"""


@pytest.mark.slow
def test_sharded_parameters_are_saved_by_orbax(tmp_path):
    """Eight devices write their shards, in chunks of a limited size; a lost one is noticed."""
    source, target = random_folder(tmp_path / "source"), tmp_path / "saved"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", SAVE, str(source), str(target)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    kernel = parameters_directory(target) / "decoder.layers.mlp.up.kernel"
    chunks = [file for file in kernel.iterdir() if not file.name.startswith(".")]
    assert len(chunks) > 8
    assert all(file.stat().st_size <= 2048 for file in chunks)
    chunks[0].unlink()
    (problem,) = hub.inspect_folder(target).problems
    assert chunks[0].name in problem


def test_plain_orbax_restores_the_dtypes_stored(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    hub.import_weights(random_folder(tmp_path / "source"), checkpoint)
    restored = flatten(ocp.load(checkpoint / "parameters"))
    assert {path: leaf.shape for path, leaf in restored.items()} == parameter_shapes(SMALL)
    assert {str(leaf.dtype) for leaf in restored.values()} == {"bfloat16"}
    read = flatten(hub.read_parameters(checkpoint))
    for path, leaf in restored.items():
        np.testing.assert_array_equal(as_numpy(leaf), as_numpy(read[path]))


def test_a_chunk_that_is_lost_is_missed(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    hub.import_weights(random_folder(tmp_path / "source"), checkpoint)
    assert hub.inspect_folder(checkpoint).problems == ()
    folder = parameters_directory(checkpoint)
    (folder / "decoder.layers.mlp.up.kernel" / "1.0.0").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"cannot read decoder/layers/mlp/up/kernel of .*1.0.0.* is missing",
    ):
        hub.export_weights(checkpoint, tmp_path / "exported")
    (folder / "decoder.embedding" / "0.0").write_bytes(b"short")
    for path in (folder / "adaptor.up.bias").iterdir():
        path.unlink()
    problems = hub.inspect_folder(checkpoint).problems
    assert len(problems) == 3
    for file in ("decoder.layers.mlp.up.kernel/1.0.0", "decoder.embedding/0.0", "adaptor/up/bias"):
        assert any(file in problem for problem in problems), file
    with pytest.raises(CheckpointError, match="adaptor/up/bias"):
        hub.export_weights(checkpoint, tmp_path / "exported")
    with pytest.raises(CheckpointError, match=r"decoder.embedding/0.0.*up.kernel/1.0.0"):
        hub.read_parameters(checkpoint, parts=["decoder"])
    assert not (tmp_path / "exported").exists()


def test_export_of_arrays_and_of_any_orbax_checkpoint(tmp_path):
    """Exports a tree in memory, and parameters deep in a tree in Orbax's default format."""
    source = random_folder(tmp_path / "source")
    parameters = hub.read_parameters(source)
    hub.export_parameters(
        hub.ArrayReader(parameters), SMALL, Tokenizer.byte_level(), tmp_path / "memory"
    )
    assert_same_tensors(source, tmp_path / "memory")
    host = jax.tree.map(np.asarray, parameters)
    hub.export_parameters(hub.ArrayReader(host), SMALL, Tokenizer.byte_level(), tmp_path / "host")
    assert_same_tensors(source, tmp_path / "host")
    ocp.save(tmp_path / "run", {"state": {"parameters": parameters, "step": 3}})
    stored = hub.OrbaxReader(tmp_path / "run" / "state", prefix=("state", "parameters"))
    hub.export_parameters(stored, SMALL, tmp_path / "source", tmp_path / "stored")
    assert_same_tensors(source, tmp_path / "stored")
    lacking = unflatten(
        {path: leaf for path, leaf in flatten(parameters).items() if path[-1] != "positions"}
    )
    with pytest.raises(CheckpointError, match="the parameters have no encoder/positions"):
        hub.export_parameters(
            hub.ArrayReader(lacking), SMALL, Tokenizer.byte_level(), tmp_path / "lacking"
        )
    with pytest.raises(CheckpointError, match="other"):
        hub.export_parameters(
            hub.OrbaxReader(tmp_path / "run" / "state", prefix=("other",)),
            SMALL,
            Tokenizer.byte_level(),
            tmp_path / "lacking",
        )
    for tree in (
        host,
        parameters,
    ):  # numpy and jax clip a block that lies outside in ways of their own
        for wrong in (with_decoder(ffn=120), with_decoder(ffn=104), with_decoder(layers=2)):
            with pytest.raises(
                CheckpointError,
                match=r"decoder/layers/mlp/down/kernel is \(3, 112, 48\), expected",
            ):
                hub.export_parameters(
                    hub.ArrayReader(tree), wrong, Tokenizer.byte_level(), tmp_path / "lacking"
                )
    assert not (tmp_path / "lacking").exists()


def test_save_checkpoint(tmp_path):
    """Training's last checkpoint equals an import of its export."""
    parameters = hub.read_parameters(random_folder(tmp_path / "source", dtype=np.dtype(np.float32)))
    hub.save_checkpoint(
        tmp_path / "saved", parameters, SMALL, Tokenizer.byte_level(), source="a test"
    )
    assert hub.inspect_folder(tmp_path / "saved").problems == ()
    assert hub.read_model_config(tmp_path / "saved") == SMALL
    assert hub.load_tokenizer(tmp_path / "saved").vocab_size == 290
    jax.tree.map(np.testing.assert_array_equal, hub.read_parameters(tmp_path / "saved"), parameters)
    hub.export_weights(tmp_path / "saved", tmp_path / "exported")
    assert_same_tensors(tmp_path / "source", tmp_path / "exported")
    del parameters["adaptor"]
    with pytest.raises(
        CheckpointError,
        match="no adaptor/conv/bias; the parameters have no adaptor/conv/kernel",
    ):
        hub.save_checkpoint(
            tmp_path / "lacking", parameters, SMALL, Tokenizer.byte_level(), source="a test"
        )
    assert not (tmp_path / "lacking").exists()
