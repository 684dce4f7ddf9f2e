"""The model a run starts from: its shape, its tokenizer, its weights."""

import pathlib

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ConfigError, ModelConfig, Part
from stepaudio_jax.models import Parameters, initial_parameters
from stepaudio_jax.text import Tokenizer


def initial_model(config: Config) -> tuple[ModelConfig, Tokenizer]:
    """The shape of the model, as the folders that `config.initial` names say where it names any, and the tokenizer.

    Raises:
        ConfigError: neither `initial` nor `tokenizer` says which tokenizer to use, or its ids exceed the model's vocabulary.
        CheckpointError: a folder cannot be read.
    """
    sources = _sources(config)
    model = hub.read_model_config(sources) if sources else config.model
    tokenizer = _tokenizer(config)
    if tokenizer.vocab_size > model.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model's vocabulary only {model.decoder.vocab_size}: "
            "choose another tokenizer, or a model.decoder.vocab_size that holds it"
        )
    return model, tokenizer


def initial_weights(config: Config, model: ModelConfig) -> Parameters:
    """Reads or draws the weights that `config.initial` asks for, in fp32: what a stage freezes, it casts itself.

    Parts that no folder gives are drawn from `config.seed`: all of them for a run from nothing, the adaptor where encoder and
    decoder come from folders of their own.

    Raises:
        CheckpointError: a folder is incomplete.
    """
    sources = _sources(config)
    parameters: Parameters = hub.read_parameters(sources, config=model, dtype="float32") if sources else {}
    if len(parameters) < len(("encoder", "adaptor", "decoder")):
        fresh = initial_parameters(model, jax.random.key(config.seed), config.compute)
        parameters = {**fresh, **parameters}
    return parameters


def _sources(config: Config) -> dict[Part, pathlib.Path]:
    initial = config.initial
    return hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)


def _tokenizer(config: Config) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Tokenizer.bytes()
    folder = config.tokenizer or config.initial.model or config.initial.decoder
    if not folder:
        raise ConfigError('tokenizer is empty, and there is no initial.model to take one from: name a folder, or "bytes"')
    return hub.load_tokenizer(folder)
