"""FLOPs by formula, against the matrix products that JAX traces."""

import dataclasses

import jax
import pytest
from flax import nnx

from stepaudio_jax.config import (
    AuxiliaryConfig,
    ComputeConfig,
    DataConfig,
    LoRAConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    build,
)
from stepaudio_jax.data import abstract_batch, batch_shape
from stepaudio_jax.models import abstract_model, abstract_parameters
from stepaudio_jax.training.flops import decoder_flops, part_flops, step_flops
from tests.models.random_model import SMALL
from tests.training.batches import next_token_loss

DATA = build(
    DataConfig,
    {
        "batch_size": 2,
        "seq_len": 64,
        "audio_chunks_per_seq": 3,
        "mel_frames_per_chunk": 64,
        "sources": [],
    },
)


def traced_flops(jaxpr) -> float:
    """Counts two for every multiplication of every `dot_general`, in loops for each iteration."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            product = 1
            for axis in contracting:
                product *= left[axis]
            total += 2 * product * equation.outvars[0].aval.size
        for inner in jax.core.jaxprs_in_params(equation.params):
            total += times * traced_flops(inner)
    return total


@pytest.mark.parametrize(
    "trainable", [("decoder",), ("adaptor", "decoder"), ("encoder", "adaptor", "decoder")]
)
def test_formula_equals_the_traced_products(trainable):
    """Except for attention: tracing counts masked scores, and recomputed ones."""
    compute = ComputeConfig(dtype="float32", remat="none", attention="xla")
    graphdef, _ = abstract_model(SMALL, compute)
    parameters = abstract_parameters(SMALL, compute)
    batch = abstract_batch(DATA.batch_size, batch_shape(DATA, AuxiliaryConfig(), pad_token=0))

    def loss(trained, frozen, batch):
        return next_token_loss(nnx.merge(graphdef, {**trained, **frozen}), batch)

    trained = {part: parameters[part] for part in trainable}
    frozen = {part: parameters[part] for part in parameters if part not in trainable}
    traced = traced_flops(jax.make_jaxpr(jax.grad(loss))(trained, frozen, batch).jaxpr)

    def attention(layers, heads, head_dim, tokens, passes):
        """Per row: q k and weights v forward; backward five products of the same size."""
        one = 2.0 * layers * heads * head_dim * tokens * tokens
        return one * (2 if passes == 1 else 7)

    formula = part_flops(SMALL, DATA, trainable)
    decoder, encoder = SMALL.decoder, SMALL.encoder
    tokens, frames, chunks = (
        DATA.seq_len,
        DATA.mel_frames_per_chunk // 2,
        DATA.batch_size * DATA.audio_chunks_per_seq,
    )
    passes = {
        "decoder": 3 if "decoder" in trainable else 2,
        "encoder": 3 if "encoder" in trainable else 1,
    }
    expected = sum(formula.values())
    half = decoder.layers * 2 * decoder.heads * decoder.head_dim * tokens / 2 * 2 * tokens
    expected += DATA.batch_size * (
        attention(decoder.layers, decoder.heads, decoder.head_dim, tokens, passes["decoder"])
        - half * passes["decoder"]
    )
    whole = encoder.layers * 2 * encoder.hidden * frames * 2 * frames
    expected += chunks * (
        attention(encoder.layers, encoder.heads, encoder.head_dim, frames, passes["encoder"])
        - whole * passes["encoder"]
    )
    assert traced == pytest.approx(expected, rel=0.02)


def test_gradients_pass_through_a_frozen_part_after_a_trained_one():
    """Not traced, since a trace has the frozen kernels' gradients too, which the compiler drops."""
    alone, both = (
        part_flops(SMALL, DATA, trainable) for trainable in (("adaptor",), ("adaptor", "decoder"))
    )
    forward = decoder_flops(SMALL.decoder, DATA.seq_len).times(DATA.batch_size)
    assert alone["decoder"] == pytest.approx(2 * forward.kernels + 3 * forward.attention)
    assert both["decoder"] == pytest.approx(3 * (forward.kernels + forward.attention))
    assert alone["adaptor"] == both["adaptor"]
    assert alone["encoder"] == both["encoder"]


def test_gradients_pass_through_a_decoder_with_a_trained_adapter():
    decoder, tokens = SMALL.decoder, DATA.batch_size * DATA.seq_len
    rank = 4
    data = dataclasses.replace(DATA, sources=(SourceConfig(path="dialogues.jsonl"),))
    stage = StageConfig(
        name="s",
        steps=1,
        data=data,
        trainable=(),
        lora=LoRAConfig(rank=rank, targets=("gate", "down")),
    )
    lora_size = 2 * decoder.layers * rank * (decoder.hidden + decoder.ffn)
    forward = sum(part_flops(SMALL, DATA, ()).values())
    kernels, attention = decoder_flops(SMALL.decoder, DATA.seq_len).times(DATA.batch_size)
    assert step_flops(SMALL, stage) == pytest.approx(
        forward + kernels + 2 * attention + 6 * tokens * lora_size
    )


def test_qwen2_5_32b_by_hand():
    """6 N D with N the parameters in matrix products, plus attention: 12 L T N D halved."""
    decoder = dataclasses.replace(ModelConfig.presets()["r1_32b"].decoder, vocab_size=152064)
    projections = 64 * (5120 * 40 * 128 * 2 + 5120 * 8 * 128 * 2 + 3 * 5120 * 27648) + 5120 * 152064
    assert decoder_flops(decoder, 4096) == pytest.approx(
        (2 * projections * 4096, 64 * 2 * 4096 * 4096 * 5120)
    )
