"""Every form of config.json that is read or written, and the errors of those that are refused."""

import copy
import json

import numpy as np
import pytest
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from stepaudio_jax.config import DecoderConfig, EncoderConfig, ModelConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.hf_config import read_hf_config, to_hf_config
from tests.hub.folders import with_decoder

# As released with Step-Audio-2-mini (section 7 of the reference lists the fields).
NESTED = {
    "architectures": ["StepAudio2ForCausalLM"],
    "model_type": "step_audio_2",
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_attention_groups": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "max_seq_len": 16384,
        "vocab_size": 158720,
        "rms_norm_eps": 1e-06,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 16384,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
    },
    "audio_encoder_config": {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": 1280,
        "n_audio_head": 20,
        "n_audio_layer": 32,
        "n_codebook_size": 4096,
        "llm_dim": 3584,
        "kernel_size": 3,
        "adapter_stride": 2,
    },
}
QWEN25_32B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "max_position_embeddings": 131072,
    "max_window_layers": 64,
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN2_AUDIO = {
    "model_type": "qwen2_audio",
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "d_model": 1280,
        "scale_embedding": False,
        "activation_function": "gelu",
        "max_source_positions": 1500,
    },
    "text_config": {"model_type": "qwen2"},
}


def flat(nested):
    values = {**nested, **nested["text_config"]}
    del values["text_config"]
    return {**values, "model_type": "step_audio_qwen2", "architectures": ["StepAudioForCausalLMV2"]}


def parse(tmp_path, values):
    (tmp_path / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return read_hf_config(tmp_path)


@pytest.mark.parametrize("form", [NESTED, flat(NESTED)], ids=["nested", "flat"])
def test_step_audio(tmp_path, form):
    parsed = parse(tmp_path, form)
    mini = ModelConfig.presets()["mini_8b"]
    assert (parsed.encoder, parsed.decoder) == (mini.encoder, mini.decoder)
    assert parsed.naming.parts == ("encoder", "adaptor", "decoder")


def test_base_models(tmp_path):
    parsed = parse(tmp_path, QWEN25_32B)
    assert parsed.encoder is None
    assert parsed.decoder == DecoderConfig(vocab_size=152064, max_positions=131072)
    parsed = parse(tmp_path, QWEN2_AUDIO)
    assert parsed.decoder is None
    assert parsed.encoder == EncoderConfig()


@pytest.mark.parametrize(
    "config",
    [
        *ModelConfig.presets().values(),
        with_decoder(tied_embeddings=True, head_dim=16),
        with_decoder(rope_theta=1e4),
    ],
)
@pytest.mark.parametrize("form", ["nested", "flat"])
def test_config_round_trip(tmp_path, config, form):
    parsed = parse(tmp_path, to_hf_config(config, dtype="bfloat16", eos=1, pad=1, form=form))
    assert (parsed.encoder, parsed.decoder) == (config.encoder, config.decoder)


def test_exported_nested_form_has_the_released_fields():
    mini = ModelConfig.presets()["mini_8b"]
    exported = to_hf_config(mini, dtype="bfloat16", eos=151643, pad=151643)
    for key in ("architectures", "model_type", "audio_encoder_config"):
        assert exported[key] == NESTED[key]
    assert NESTED["text_config"].items() <= exported["text_config"].items()
    exported = to_hf_config(
        mini, dtype="bfloat16", eos=151643, pad=151643, form="flat", remote_code="a/b"
    )
    assert flat(NESTED).items() <= exported.items()
    assert exported["auto_map"]["AutoConfig"] == "a/b--configuration_step_audio_2.StepAudio2Config"


def change(values, path, value="delete"):
    values = copy.deepcopy(values)
    *parents, last = path.split(".")
    node = values
    for name in parents:
        node = node[name]
    if value == "delete":
        del node[last]
    else:
        node[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, not list"),
        (change(NESTED, "model_type"), "key 'model_type' is missing"),
        (
            change(NESTED, "model_type", "llama"),
            "model_type='llama' is not one of 'step_audio_2', 'step_audio_qwen2'",
        ),
        (change(NESTED, "text_config.hidden_size"), "key 'text_config.hidden_size' is missing"),
        (change(NESTED, "text_config.rope_theta"), "key 'text_config.rope_theta' is missing"),
        (change(NESTED, "audio_encoder_config"), "key 'audio_encoder_config' is missing"),
        (
            change(NESTED, "audio_encoder_config", [1]),
            "audio_encoder_config=.1. must be of type dict",
        ),
        (
            change(NESTED, "audio_encoder_config.n_audio_layer"),
            "key 'audio_encoder_config.n_audio_layer' is missing",
        ),
        (change(NESTED, "audio_encoder_config.llm_dim", 4096), "llm_dim=4096 must be 3584"),
        (change(NESTED, "audio_encoder_config.adapter_stride", 3), "adapter_stride=3 must be 2"),
        (
            change(NESTED, "audio_encoder_config.n_audio_head", 7),
            "hidden=1280 is not a multiple of heads=7",
        ),
        (
            change(NESTED, "audio_encoder_config.length_convention", "x"),
            "length_convention='x' must be one of 'hf', 'vllm'",
        ),
        (
            change(NESTED, "text_config.num_attention_groups", 7),
            "num_attention_groups=7 differs from num_key_value_heads=4",
        ),
        (
            change(NESTED, "text_config.num_attention_heads", 27),
            "hidden_size=3584 is not a multiple of num_attention_heads=27",
        ),
        (
            change(NESTED, "text_config.num_attention_heads", 0),
            "hidden_size=3584 is not a multiple of num_attention_heads=0",
        ),
        (
            change(NESTED, "text_config.vocab_size", "158720"),
            "vocab_size='158720' must be of type int",
        ),
        (change(NESTED, "text_config.vocab_size", True), "vocab_size=True must be of type int"),
        (change(NESTED, "text_config.num_hidden_layers", 0), "layers=0 must be positive"),
        (
            change(NESTED, "text_config.rope_scaling", {"type": "yarn"}),
            "rope_scaling=.* must be null",
        ),
        (change(NESTED, "text_config.hidden_act", "gelu"), "hidden_act='gelu' must be 'silu'"),
        (change(QWEN25_32B, "use_sliding_window", True), "use_sliding_window=True must be False"),
        (
            change(QWEN25_32B, "rope_parameters", {"rope_type": "yarn", "rope_theta": 1.0}),
            "rope_parameters.rope_type='yarn'",
        ),
        (
            change(QWEN2_AUDIO, "audio_config.encoder_ffn_dim", 4096),
            "encoder_ffn_dim=4096 must be 5120",
        ),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, values, message):
    with pytest.raises(CheckpointError, match=message) as error:
        parse(tmp_path, values)
    assert str(tmp_path / "config.json") in str(error.value)


BASE = {"rope_theta": 1e6}
UNSCALED = [
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": {"type": "default", "rope_type": "default", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "factor": 1.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 1}},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None},
    {
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 1.0},
        "rope_scaling": {"type": "default"},
    },
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e6},
]


@pytest.mark.parametrize("rope", UNSCALED)
def test_rotary_positions_that_nothing_scales(tmp_path, rope):
    """transformers computes the frequencies of `rope_theta` alone too, and scales nothing."""
    values = QWEN25_32B | BASE | rope
    assert parse(tmp_path, values).decoder.rope_theta == 1e6
    small = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "vocab_size": 8,
    }
    given = {
        key: value
        for key, value in (values | small).items()
        if value is not None and key != "model_type"
    }
    rotary = Qwen2RotaryEmbedding(Qwen2Config(**given))
    np.testing.assert_allclose(rotary.inv_freq.numpy(), 1e6 ** -(np.arange(8) / 8), rtol=1e-6)
    assert rotary.attention_scaling == 1


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            r"rope_scaling={.*} must be null or of the type 'default'",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling={.*} must be null"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "rope_scaling={.*} must be null"),
        (
            {"rope_scaling": {"rope_type": "yarn", "type": "default", "factor": 4.0}},
            "rope_scaling={.*} must be null",
        ),
        (
            {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
            "rope_scaling={.*} must be null",
        ),
        ({"rope_scaling": {"type": 3}}, "rope_scaling.type=3 must be of type str"),
        ({"rope_scaling": "default"}, "rope_scaling='default' must be of type dict"),
        (
            {"rope_parameters": {"type": "yarn", "rope_theta": 1e6}},
            "rope_parameters.type='yarn' must be 'default'",
        ),
        (
            {"rope_parameters": {"rope_theta": "x"}},
            "rope_parameters.rope_theta='x' must be of type number",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 must be 1.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 must be 1.0"),
        ({"rope_theta": None}, "rope_theta=None must be of type number"),
    ],
)
def test_scaled_rotary_positions_are_refused(tmp_path, rope, reason):
    with pytest.raises(CheckpointError, match=reason):
        parse(tmp_path, QWEN25_32B | BASE | rope)


def test_no_folder_and_no_config(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        read_hf_config(tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match="is an empty folder; download or copy the model into it"
    ):
        read_hf_config(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"has no config.json$"):
        read_hf_config(tmp_path)


def test_an_encoder_that_the_format_cannot_describe_is_refused():
    config = ModelConfig(encoder=EncoderConfig(norm_eps=1e-6))
    with pytest.raises(CheckpointError, match="norm_eps=1e-06 cannot be exported"):
        to_hf_config(config, dtype="bfloat16", eos=1, pad=1)
