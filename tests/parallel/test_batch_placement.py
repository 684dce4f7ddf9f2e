"""Which devices a mesh takes, and which batches it cuts evenly."""

import dataclasses

import pytest

from stepaudio_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.parallel import check_batch_divisible, make_mesh, num_slices


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that a mesh looks at."""

    platform: str
    slice_index: int
    id: int


def devices(platform):
    return [Device(platform, slice_index=number // 2, id=number) for number in range(4)]


def test_hosts_of_gpus_are_not_slices():
    assert num_slices(devices("tpu")) == 2
    assert num_slices(devices("gpu")) == 1
    assert make_mesh(MeshConfig(), devices("gpu")).shape["fsdp"] == 4
    with pytest.raises(ConfigError, match=r"mesh\.slices=1, and the devices lie in 2 slices"):
        make_mesh(MeshConfig(), devices("tpu"))


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The sizes of a mesh."""

    shape: dict[str, int]


def job(*, rows=8, tokens=64, held_out_rows=8, held_out_tokens=64, parts=1):
    def data(rows, tokens):
        return DataConfig(sources=(SourceConfig(path="a.jsonl"),), batch_size=rows, seq_len=tokens)

    held_out = EvaluationConfig(data=data(held_out_rows, held_out_tokens))
    stage = StageConfig(
        name="sft",
        steps=1,
        data=data(rows, tokens),
        evaluation=held_out,
        gradient_accumulation_steps=parts,
    )
    return Config(run_dir="r", stages=(stage,), tokenizer="bytes")


MESH = Mesh({"data": 1, "fsdp": 4, "sequence": 4, "tensor": 1})


def test_batches_that_shard_evenly_pass():
    check_batch_divisible(job(parts=2), MESH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows": 6},
            "data.batch_size=6 cannot be sharded over data=1 x fsdp=4; make it a multiple of 4",
        ),
        (
            {"parts": 4},
            "data.batch_size=8 in 4 micro-batches cannot be sharded over data=1 x fsdp=4; "
            "make it a multiple of 16",
        ),
        ({"held_out_rows": 6}, "evaluation.data.batch_size=6 cannot be sharded"),
        (
            {"tokens": 66},
            "data.seq_len=66 cannot be sharded over sequence=4; make it a multiple of 4",
        ),
        ({"held_out_tokens": 66}, "evaluation.data.seq_len=66 cannot be sharded over sequence=4"),
    ],
)
def test_batches_that_do_not_shard_evenly_are_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_batch_divisible(job(**changes), MESH)
