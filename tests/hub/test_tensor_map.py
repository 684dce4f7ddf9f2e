"""Names and shapes of the released checkpoints' tensors; every transform can be undone."""

import math

import numpy as np
import pytest

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.hub.tensor_map import (
    QWEN2,
    QWEN2_AUDIO,
    STEP_AUDIO,
    parameter_shapes,
    tensors,
    transpose_contiguous,
)
from tests.hub.folders import SMALL, with_decoder


def released_tensors(layers, hidden, ffn, query, key, vocab=158720):
    """Returns the shape of every tensor of a released checkpoint, as its index lists them."""
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        "encoder.conv1.weight": (1280, 128, 3),
        "encoder.conv1.bias": (1280,),
        "encoder.conv2.weight": (1280, 1280, 3),
        "encoder.conv2.bias": (1280,),
        "encoder.positional_embedding.weight": (1500, 1280),
        "encoder.after_norm.weight": (1280,),
        "encoder.after_norm.bias": (1280,),
        "adapter.conv.weight": (1280, 1280, 3),
        "adapter.conv.bias": (1280,),
        "adapter.linear1.weight": (2048, 1280),
        "adapter.linear1.bias": (2048,),
        "adapter.linear2.weight": (hidden, 2048),
        "adapter.linear2.bias": (hidden,),
    }
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")
        }
        for name, size in (("q", query), ("k", key), ("v", key)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, query)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, ffn)
    for i in range(32):
        block = f"encoder.blocks.{i}."
        for name in ("query", "value", "out"):
            shapes |= {
                f"{block}attn.{name}.weight": (1280, 1280),
                f"{block}attn.{name}.bias": (1280,),
            }
        shapes[f"{block}attn.key.weight"] = (1280, 1280)
        for name in ("attn_ln", "mlp_ln"):
            shapes |= {f"{block}{name}.weight": (1280,), f"{block}{name}.bias": (1280,)}
        shapes |= {f"{block}mlp.0.weight": (5120, 1280), f"{block}mlp.0.bias": (5120,)}
        shapes |= {f"{block}mlp.2.weight": (1280, 5120), f"{block}mlp.2.bias": (1280,)}
    return shapes


@pytest.mark.parametrize(
    ("preset", "expected", "count", "parameters"),
    [
        ("r1_32b", released_tensors(64, 5120, 27648, 40 * 128, 8 * 128), 1264, 33_487_033_600),
        ("mini_8b", released_tensors(28, 3584, 18944, 28 * 128, 4 * 128), 832, 8_315_179_264),
    ],
)
def test_rules_give_the_released_tensors(preset, expected, count, parameters):
    found = tensors(ModelConfig.presets()[preset], STEP_AUDIO)
    assert {tensor.name: tensor.shape for tensor in found} == expected
    assert len(found) == count
    assert sum(math.prod(tensor.shape) for tensor in found) == parameters


@pytest.mark.parametrize(
    "config", [SMALL, with_decoder(tied_embeddings=True), ModelConfig.presets()["mini_8b"]]
)
def test_blocks_fill_every_parameter_exactly_once(config):
    """Both for whole tensors and for blocks of a few rows."""
    small = config.decoder.hidden < 100
    for elements in (2**22, 100) if small else (2**22,):
        filled = dict.fromkeys(parameter_shapes(config), 0)
        for tensor in tensors(config, STEP_AUDIO):
            rows = 0
            for block in tensor.blocks(elements):
                assert block.rows.start == rows
                rows = block.rows.stop
                filled[tensor.path] += math.prod(block.shape)
                assert (
                    math.prod(block.shape) <= elements
                    or block.shape[tensor.row_axis - len(tensor.parameter_shape)] == 1
                )
                assert all(
                    size <= chunk
                    for size, chunk in zip(block.shape, tensor.chunk_shape(elements), strict=True)
                )
            assert rows == tensor.shape[0]
        assert filled == {
            path: math.prod(shape) for path, shape in parameter_shapes(config).items()
        }


@pytest.mark.parametrize("naming", [STEP_AUDIO, QWEN2, QWEN2_AUDIO])
def test_transforms_are_undone_exactly(naming):
    generator = np.random.default_rng(0)
    for tensor in tensors(SMALL, naming, naming.parts):
        stored = generator.integers(0, 2**16, tensor.shape, np.uint16)
        back = [
            tensor.from_parameter(tensor.to_parameter(stored[block.rows], block), block)
            for block in tensor.blocks(1000)
        ]
        np.testing.assert_array_equal(np.concatenate(back), stored, err_msg=tensor.name)


def test_both_encoder_namings_name_the_same_parameters():
    ours = [
        (tensor.path, tensor.layer, tensor.shape)
        for tensor in tensors(SMALL, STEP_AUDIO, ["encoder"])
    ]
    theirs = [
        (tensor.path, tensor.layer, tensor.shape)
        for tensor in tensors(SMALL, QWEN2_AUDIO, ["encoder"])
    ]
    assert ours == theirs


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float64])
@pytest.mark.parametrize(
    ("shape", "order"),
    [((70, 33), (1, 0)), ((40, 5, 3), (2, 1, 0)), ((3, 40, 5), (1, 2, 0)), ((7,), (0,))],
)
def test_transposed_equals_numpy(shape, order, dtype):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    result = transpose_contiguous(array, order)
    np.testing.assert_array_equal(result, array.transpose(order))
    assert result.flags.c_contiguous
