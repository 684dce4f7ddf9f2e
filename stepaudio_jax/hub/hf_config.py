"""Reads and writes `config.json` of Hugging Face folders.

It reads Step-Audio's (both forms), Qwen2's, Qwen2.5's and Qwen2-Audio's, and writes Step-Audio's.
Every size comes from the file. A field that is missing, has the wrong type, or asks for something
that the model does not support is an error that names the file and the key.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.config import DecoderConfig, EncoderConfig, LengthConvention, ModelConfig
from stepaudio_jax.errors import CheckpointError, ConfigError
from stepaudio_jax.hub.tensor_map import QWEN2, QWEN2_AUDIO, STEP_AUDIO, Naming
from stepaudio_jax.storage import Path, read_json, recognize_folder, recognize_run, write_json
from stepaudio_jax.text import Tokenizer

CONFIG = "config.json"
HFConfigForm = Literal["nested", "flat"]
_MODEL_TYPES: Mapping[HFConfigForm, str] = {"nested": "step_audio_2", "flat": "step_audio_qwen2"}
_ARCHITECTURES: Mapping[HFConfigForm, str] = {
    "nested": "StepAudio2ForCausalLM",
    "flat": "StepAudioForCausalLMV2",
}
# This project's own field among the encoder's; other loaders ignore it.
_LENGTH_CONVENTION = "length_convention"
# Of the audio tokenizer, which is not part of the model; loaders expect the field.
_CODEBOOK_SIZE = 4096
_TEMPERATURE = 0.7  # of the released `generation_config.json`


@dataclasses.dataclass(frozen=True)
class HFConfig:
    """The names of a folder's tensors and the shapes of its parts, from its `config.json`.

    No field has the adaptor's inner size; it is read from the shapes of its tensors.
    """

    model_type: str
    naming: Naming
    encoder: EncoderConfig | None
    decoder: DecoderConfig | None
    length_convention: LengthConvention = "hf"


def read_hf_config(folder: Path) -> HFConfig:
    """Reads `config.json` of a Hugging Face folder.

    Raises:
        CheckpointError: names the file and the key.
    """
    file = folder / CONFIG
    if not file.is_file():
        reason = recognize_folder(folder, "weights") or (
            "has no config.json" if folder.is_dir() else "is not a folder"
        )
        raise CheckpointError(f"{folder} {reason}")
    values = read_json(file, CheckpointError)
    if "model_type" not in values and (finding := recognize_run(folder, "weights")):
        raise CheckpointError(f"{folder} {finding}")
    fields = _Fields(file, values)
    model_type = fields.text("model_type")
    if fields.has("quantization_config"):
        method = fields.section("quantization_config").text_or("quant_method", "quantised")
        raise CheckpointError(
            f"{folder} holds quantised weights ({method}); get the model in bfloat16 that they were"
            " made from"
        )
    if model_type not in _PARSERS:
        raise CheckpointError(
            f"{file}: model_type={model_type!r} is not one of {', '.join(map(repr, _PARSERS))}"
        )
    try:
        return _PARSERS[model_type](fields)
    except ConfigError as error:  # a value of the right type and out of range
        raise CheckpointError(f"{file}: {error}") from None


class _Fields:
    """Reads the fields of a JSON object, or of an object in it, with their types."""

    def __init__(self, file: Path, values: Mapping[str, Any], prefix: str = ""):
        self._file = file
        self._values = values
        self._prefix = prefix

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def section(self, key: str) -> "_Fields":
        return _Fields(self._file, self._get(key, dict), f"{self._prefix}{key}.")

    def integer(self, key: str) -> int:
        return int(self._get(key, int))

    def number(self, key: str) -> float:
        return float(self._get(key, (int, float)))

    def text(self, key: str) -> str:
        return str(self._get(key, str))

    def text_or(self, key: str, default: str) -> str:
        return self.text(key) if self.has(key) else default

    def one_of(self, key: str, allowed: Sequence[Any]) -> Any:
        value = self._get(key, str)
        if value not in allowed:
            raise self.error(key, f"must be one of {', '.join(map(repr, allowed))}")
        return value

    def flag(self, key: str) -> bool:
        """Returns a boolean; False if the key is absent, as in the released loaders."""
        return bool(self._get(key, bool)) if self.has(key) else False

    def check_equals(self, key: str, value: Any, why: str = "nothing else is supported") -> None:
        """Checks that a field is absent or has a value."""
        if self.has(key) and self._values[key] != value:
            raise self.error(key, f"must be {value!r}: {why}")

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file}: {self._prefix}{key}={self._values.get(key)!r} {problem}"
        )

    def _get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self._values:
            raise CheckpointError(f"{self._file}: key {self._prefix + key!r} is missing")
        value = self._values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise self.error(key, f"must be of type {wanted}")
        return value


def _step_audio(fields: _Fields) -> HFConfig:
    # The nested form keeps the decoder's fields in text_config, the flat one beside the rest.
    text = fields.section("text_config") if fields.has("text_config") else fields
    decoder = _decoder(
        text, tied=text.flag("tie_word_embeddings") or fields.flag("tie_word_embeddings")
    )
    audio = fields.section("audio_encoder_config")
    audio.check_equals("kernel_size", 3)
    audio.check_equals("adapter_stride", 2)
    audio.check_equals("llm_dim", decoder.hidden, "the adaptor's output is the decoder's input")
    encoder = EncoderConfig(
        mel_bins=audio.integer("n_mels"),
        positions=audio.integer("n_audio_ctx"),
        hidden=audio.integer("n_audio_state"),
        heads=audio.integer("n_audio_head"),
        layers=audio.integer("n_audio_layer"),
    )
    convention: LengthConvention = (
        audio.one_of(_LENGTH_CONVENTION, typing.get_args(LengthConvention))
        if audio.has(_LENGTH_CONVENTION)
        else "hf"
    )
    return HFConfig(fields.text("model_type"), STEP_AUDIO, encoder, decoder, convention)


def _qwen2(fields: _Fields) -> HFConfig:
    decoder = _decoder(fields, tied=fields.flag("tie_word_embeddings"))
    return HFConfig(fields.text("model_type"), QWEN2, None, decoder)


def _qwen2_audio(fields: _Fields) -> HFConfig:
    audio = fields.section("audio_config")
    audio.check_equals("activation_function", "gelu")
    audio.check_equals("scale_embedding", False)
    encoder = EncoderConfig(
        mel_bins=audio.integer("num_mel_bins"),
        positions=audio.integer("max_source_positions"),
        hidden=audio.integer("d_model"),
        heads=audio.integer("encoder_attention_heads"),
        layers=audio.integer("encoder_layers"),
    )
    audio.check_equals(
        "encoder_ffn_dim", encoder.ffn, "the encoder's inner size is four times its hidden size"
    )
    return HFConfig(fields.text("model_type"), QWEN2_AUDIO, encoder, None)


_PARSERS: Mapping[str, Callable[[_Fields], HFConfig]] = {
    "step_audio_2": _step_audio,
    "step_audio_qwen2": _step_audio,
    "qwen2": _qwen2,
    "qwen2_audio": _qwen2_audio,
}


def _decoder(fields: _Fields, *, tied: bool) -> DecoderConfig:
    fields.check_equals("hidden_act", "silu")
    fields.check_equals("use_sliding_window", False)
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    if not fields.has("head_dim") and (heads <= 0 or hidden % heads):
        raise fields.error("hidden_size", f"is not a multiple of num_attention_heads={heads}")
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden=hidden,
        ffn=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=_kv_heads(fields),
        head_dim=fields.integer("head_dim") if fields.has("head_dim") else hidden // heads,
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=_rope_theta(fields),
        max_positions=fields.integer("max_position_embeddings"),
        tied_embeddings=tied,
    )


def _kv_heads(fields: _Fields) -> int:
    """Returns the number of key-value heads, which Step-Audio states twice and Qwen2 once."""
    keys = [key for key in ("num_key_value_heads", "num_attention_groups") if fields.has(key)] or [
        "num_key_value_heads"
    ]
    values = [fields.integer(key) for key in keys]
    if len(set(values)) > 1:
        raise fields.error(keys[1], f"differs from {keys[0]}={values[0]}")
    return values[0]


def _rope_theta(fields: _Fields) -> float:
    """Returns the base of the rotary positions; a scaling that changes nothing is accepted."""
    thetas = []
    # transformers 5 writes `rope_parameters`, with the base in it; earlier versions write
    # `rope_scaling`, null if there is none.
    for key in ("rope_parameters", "rope_scaling"):
        if fields.has(key):
            rope = fields.section(key)
            _check_rope_unscaled(fields, key, rope)
            thetas += [rope.number("rope_theta")] if rope.has("rope_theta") else []
    fields.check_equals("partial_rotary_factor", 1.0, "all of a head is rotated")
    return thetas[0] if thetas else fields.number("rope_theta")


def _check_rope_unscaled(fields: _Fields, key: str, rope: _Fields) -> None:
    """Checks that a scaling is of the type "default", or "linear" with a factor of 1."""
    kind_key = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.text_or(kind_key, "default")
    scales = not (
        kind == "default"
        or (kind == "linear" and rope.has("factor") and rope.number("factor") == 1)
    )
    rule = "scaled rotary positions are not supported"
    if key == "rope_scaling" and (scales or rope.has("mrope_section")):
        raise fields.error(
            key,
            f"must be null or of the type 'default': {rule} (where the model was not trained with"
            " them, set it to null, and max_position_embeddings to the length without them)",
        )
    if scales:
        raise rope.error(kind_key, f"must be 'default': {rule}")
    rope.check_equals("mrope_section", None, rule)
    rope.check_equals("partial_rotary_factor", 1.0, "all of a head is rotated")


def to_hf_config(
    config: ModelConfig,
    *,
    dtype: str,
    eos: int,
    pad: int,
    form: HFConfigForm = "nested",
    remote_code: str = "",
) -> dict[str, Any]:
    """Returns the content of `config.json` of an exported model.

    Args:
        config: the model's shape.
        dtype: of the weights, "bfloat16" or "float32".
        eos, pad: token ids.
        form: "nested" as in Step-Audio-2-mini, "flat" as in Step-Audio-R1.
        remote_code: a Hub repository with the modelling code, for `AutoModelForCausalLM` with
            `trust_remote_code`; empty for none.

    Raises:
        CheckpointError: the format has no field for some value of the shape.
    """
    encoder, decoder = config.encoder, config.decoder
    text: dict[str, Any] = {
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ffn,
        "num_attention_heads": decoder.heads,
        "num_attention_groups": decoder.kv_heads,
        "num_key_value_heads": decoder.kv_heads,
        "num_hidden_layers": decoder.layers,
        "max_seq_len": decoder.max_positions,
        "max_position_embeddings": decoder.max_positions,
        "vocab_size": decoder.vocab_size,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": decoder.tied_embeddings,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": dtype,
    }
    if encoder.norm_eps != EncoderConfig.norm_eps:
        raise CheckpointError(
            f"encoder norm_eps={encoder.norm_eps} cannot be exported: loaders use"
            f" {EncoderConfig.norm_eps}"
        )
    if decoder.head_dim * decoder.heads != decoder.hidden:
        text["head_dim"] = decoder.head_dim
    audio: dict[str, Any] = {
        "n_mels": encoder.mel_bins,
        "n_audio_ctx": encoder.positions,
        "n_audio_state": encoder.hidden,
        "n_audio_head": encoder.heads,
        "n_audio_layer": encoder.layers,
        "n_codebook_size": _CODEBOOK_SIZE,
        "llm_dim": decoder.hidden,
        "kernel_size": config.adaptor.kernel_size,
        "adapter_stride": config.adaptor.stride,
    }
    if config.length_convention != "hf":
        audio[_LENGTH_CONVENTION] = config.length_convention
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[form]],
        "model_type": _MODEL_TYPES[form],
    }
    if remote_code:
        values["auto_map"] = {
            "AutoConfig": f"{remote_code}--configuration_step_audio_2.StepAudio2Config",
            "AutoModelForCausalLM": f"{remote_code}--modeling_step_audio_2.StepAudio2ForCausalLM",
        }
    if form == "nested":
        shared = {
            key: text[key]
            for key in ("tie_word_embeddings", "eos_token_id", "pad_token_id", "torch_dtype")
        }
        return {**values, "text_config": text, "audio_encoder_config": audio, **shared}
    return {**values, **text, "audio_encoder_config": audio}


def write_config_files(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    form: HFConfigForm,
    remote_code: str = "",
) -> None:
    """Writes `config.json` and `generation_config.json`."""
    special = tokenizer.special
    described = to_hf_config(
        config, dtype=dtype, eos=special.pad, pad=special.pad, form=form, remote_code=remote_code
    )
    generation = {
        "do_sample": True,
        "temperature": _TEMPERATURE,
        "eos_token_id": [special.eot],
        "pad_token_id": special.pad,
    }
    write_json(folder / CONFIG, described)
    write_json(folder / "generation_config.json", generation)
