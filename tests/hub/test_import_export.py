"""Hugging Face folder -> checkpoint -> Hugging Face folder, bit for bit."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from stepaudio_jax import hub
from stepaudio_jax.errors import CheckpointError, OutputError
from stepaudio_jax.hub import hf_folder
from stepaudio_jax.hub.checkpoint import read_checkpoint_config
from stepaudio_jax.storage.files import temporary_path
from stepaudio_jax.text import Tokenizer
from tests.hub.folders import (
    SMALL,
    assert_same_tensors,
    edit_json,
    qwen2,
    qwen2_audio,
    random_folder,
    read_tensors,
    save_with_tokenizer,
    with_decoder,
    write_tensors,
)

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (SMALL, {"dtype": BFLOAT16}),
        (SMALL, {"dtype": FLOAT32, "form": "flat", "max_shard_bytes": 60_000}),
        (with_decoder(tied_embeddings=True), {"dtype": BFLOAT16, "form": "flat"}),
        (dataclasses.replace(SMALL, length_convention="vllm"), {"dtype": np.dtype(np.float16)}),
    ],
    ids=["bfloat16", "float32-flat-shards", "tied", "vllm-float16"],
)
def test_round_trip_is_exact(tmp_path, config, options):
    source = random_folder(tmp_path / "source", config, **options)
    hub.import_weights(source, tmp_path / "checkpoint")
    assert hub.is_checkpoint(tmp_path / "checkpoint")
    assert not hub.is_checkpoint(source)
    assert read_checkpoint_config(tmp_path / "checkpoint") == config
    options = {name: value for name, value in options.items() if name != "dtype"}
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported", **options)
    assert_same_tensors(source, tmp_path / "exported")
    for file in source.iterdir():  # shards, index, configs and tokenizer files too
        content = file.read_bytes()
        if file.name == "config.json":  # a checkpoint does not say that its weights were random
            content = content.replace(b',\n  "stepaudio_jax_random_weights": true', b"")
        assert content == (tmp_path / "exported" / file.name).read_bytes(), file.name
    assert hub.inspect_folder(tmp_path / "exported").problems == ()


@pytest.mark.parametrize("name", ["model-{:05d}-of-00003.safetensors", "model-{:05d}.safetensors"])
@pytest.mark.parametrize("index", [True, False])
def test_shard_namings(tmp_path, name, index):
    """File names with the count (mini) or without (R1.1); with an index, or with none."""
    source = random_folder(tmp_path / "source")
    tensors = read_tensors(source)
    write_tensors(source, {})
    weight_map = {}
    for number, part in enumerate(np.array_split(sorted(tensors), 3), start=1):
        file = name.format(number)
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        write_tensors(folder, {str(key): tensors[str(key)] for key in part}, file)
        (folder / file).rename(source / file)
        weight_map |= {str(key): file for key in part}
    (source / "model.safetensors").unlink()
    if index:
        (source / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    hub.import_weights(source, tmp_path / "checkpoint")
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    assert_same_tensors(source, tmp_path / "exported")


def test_casting_rounds_to_bf16_as_torch_does_and_is_exact_to_fp32(tmp_path):
    """fp32 -> bf16 rounds to nearest even, as torch does; bf16 -> fp32 is exact."""
    source = random_folder(tmp_path / "source", dtype=FLOAT32)
    hub.import_weights(source, tmp_path / "checkpoint", dtype=BFLOAT16)
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "wide", dtype=FLOAT32)
    hub.import_weights(source, tmp_path / "exact")
    hub.export_weights(tmp_path / "exact", tmp_path / "narrow", dtype=BFLOAT16)
    wide, narrow = read_tensors(tmp_path / "wide"), read_tensors(tmp_path / "narrow")
    for name, tensor in read_tensors(source).items():
        assert torch.equal(wide[name], tensor.bfloat16().float()), name
        assert torch.equal(narrow[name], tensor.bfloat16()), name
    assert (
        json.loads((tmp_path / "narrow" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    )
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"


def test_exported_folder_is_what_loaders_expect(tmp_path):
    source = random_folder(tmp_path / "source", max_shard_bytes=100_000)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    sizes = {file: sum(t.nbytes for t in read_tensors_of(source / file).values()) for file in files}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert (
        max(sizes.values()) <= 192_000
    )  # encoder.positional_embedding alone; every other shard is within the limit
    assert sorted(sizes.values())[-2] <= 100_000
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert tokenizer.encode("héllo", add_special_tokens=False) == Tokenizer.byte_level().encode(
        "héllo"
    )
    generation = json.loads((source / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|EOT|>")]
    assert generation["temperature"] == 0.7


def read_tensors_of(file: pathlib.Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


@pytest.mark.parametrize("tied", [False, True])
def test_base_models_with_a_fresh_adaptor(tmp_path, tied):
    """Qwen2 and Qwen2-Audio, as transformers saves them, export under Step-Audio's names."""
    decoder, encoder = qwen2(tied=tied), qwen2_audio()
    source = save_with_tokenizer(decoder, tmp_path / "decoder", max_shard_size="40KB")
    audio = tmp_path / "encoder"
    encoder.save_pretrained(audio)
    described = hub.import_weights(source, tmp_path / "checkpoint", encoder_source=audio, seed=3)
    assert described == {
        "decoder": "Qwen2 folder decoder",
        "encoder": "Qwen2-Audio folder encoder",
        "adaptor": "newly initialised",
    }
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["sources"] == described
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    tensors = read_tensors(tmp_path / "exported")
    state = decoder.state_dict()
    if tied:
        del state["lm_head.weight"]
    assert {name for name in tensors if name.startswith(("model.", "lm_head."))} == set(state)
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor), name
    renamed = {
        "conv1": "conv1",
        "conv2": "conv2",
        "embed_positions": "positional_embedding",
        "layer_norm": "after_norm",
        "self_attn.q_proj": "attn.query",
        "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value",
        "self_attn.out_proj": "attn.out",
        "self_attn_layer_norm": "attn_ln",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
        "final_layer_norm": "mlp_ln",
    }
    for name, tensor in encoder.get_submodule("model.audio_tower").state_dict().items():
        module, kind = name.rsplit(".", 1)
        layer = ""
        if module.startswith("layers."):
            _, number, module = module.split(".", 2)
            layer = f"blocks.{number}."
        assert torch.equal(tensors.pop(f"encoder.{layer}{renamed[module]}.{kind}"), tensor), name
    assert not [name for name in tensors if name.startswith("encoder.")]
    adaptor = {name: tensor for name, tensor in tensors.items() if name.startswith("adapter.")}
    assert len(adaptor) == 6
    assert all(
        torch.count_nonzero(tensor) == 0
        for name, tensor in adaptor.items()
        if name.endswith("bias")
    )
    for name, fan_in in (("conv", 3 * 64), ("linear1", 64), ("linear2", 2048)):
        assert adaptor[f"adapter.{name}.weight"].std() == pytest.approx(fan_in**-0.5, rel=0.05)
    hub.import_weights(source, tmp_path / "again", encoder_source=audio, seed=3)
    hub.import_weights(source, tmp_path / "other", encoder_source=audio, seed=4)
    same, other = (
        hub.read_parameters(tmp_path / name, parts=["adaptor"]) for name in ("again", "other")
    )
    first = hub.read_parameters(tmp_path / "checkpoint", parts=["adaptor"])
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert (first["adaptor"]["up"]["kernel"] != other["adaptor"]["up"]["kernel"]).all()


def test_vocabulary_extended_with_new_rows(tmp_path):
    source = save_with_tokenizer(qwen2(), tmp_path / "source")
    audio = random_folder(tmp_path / "audio", dtype=FLOAT32)
    described = hub.import_weights(
        source, tmp_path / "checkpoint", encoder_source=audio, vocab_size=350
    )
    assert described["decoder"].endswith("rows 300 to 349 of the vocabulary newly initialised")
    assert (
        described["adaptor"] == "newly initialised"
    )  # that of the encoder's folder speaks to another decoder
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    tensors, old = read_tensors(tmp_path / "exported"), read_tensors(source)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert tensors[name].shape == (350, 48)
        assert torch.equal(tensors[name][:300], old[name])
        assert tensors[name][300:].std() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(CheckpointError, match="vocab_size=299 is less than the 300 rows"):
        hub.import_weights(source, tmp_path / "smaller", encoder_source=audio, vocab_size=299)


def test_encoder_of_another_step_audio_folder(tmp_path):
    first = random_folder(tmp_path / "first")
    second = random_folder(tmp_path / "second", seed=1)
    hub.import_weights(first, tmp_path / "checkpoint", encoder_source=second)
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    ours, theirs = read_tensors(first), read_tensors(second)
    for name, tensor in read_tensors(tmp_path / "exported").items():
        assert torch.equal(tensor, (theirs if name.startswith("encoder.") else ours)[name]), name
    wide = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, hidden=32))
    other = random_folder(tmp_path / "wide", wide)
    with pytest.raises(
        CheckpointError,
        match=r"adaptor of .*first takes 64 features, and the encoder of .*wide gives 32",
    ):
        hub.import_weights(first, tmp_path / "no", encoder_source=other)


def test_sources_without_the_part_asked_for(tmp_path):
    decoder = save_with_tokenizer(qwen2(), tmp_path / "decoder")
    audio = tmp_path / "audio"
    qwen2_audio().save_pretrained(audio)
    with pytest.raises(
        CheckpointError,
        match=r"decoder \(Qwen2\) has no encoder; say where it is with --encoder-source",
    ):
        hub.import_weights(decoder, tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=r"audio \(Qwen2-Audio\) holds encoder only, not decoder"
    ):
        hub.import_weights(audio, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds decoder only, not encoder"):
        hub.import_weights(decoder, tmp_path / "out", encoder_source=decoder)
    assert not (tmp_path / "out").exists()


def test_real_vocabulary(tmp_path, shared_tokenizer):
    """A plain Qwen2 vocabulary gains the special tokens, in the checkpoint and its export."""
    config = with_decoder(vocab_size=151936, hidden=8, heads=2, kv_heads=1, head_dim=4)
    source = random_folder(tmp_path / "source", config)
    hub.import_weights(source, tmp_path / "checkpoint", tokenizer=shared_tokenizer)
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.convert_tokens_to_ids("<audio_patch>") == 151690
    assert json.loads((tmp_path / "exported" / "generation_config.json").read_text())[
        "eos_token_id"
    ] == [151665]
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["eos_token_id"] == 151643


def test_special_tokens_without_a_row_are_refused(tmp_path):
    message = "writes tokens up to 288 and the vocabulary has 280 rows; it needs at least 289"
    with pytest.raises(CheckpointError, match=message):
        random_folder(tmp_path / "small", with_decoder(vocab_size=280))
    source = random_folder(tmp_path / "source")
    parameters = hub.ArrayReader(hub.read_parameters(source))
    with pytest.raises(CheckpointError, match=message):
        hub.export_parameters(
            parameters, with_decoder(vocab_size=280), Tokenizer.byte_level(), tmp_path / "small"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_every_problem_is_listed_and_nothing_written(tmp_path):
    source = random_folder(tmp_path / "source")
    tensors = read_tensors(source)
    del tensors["encoder.blocks.1.attn.key.weight"]
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors[
        "model.layers.2.mlp.down_proj.weight"
    ].T
    tensors["adapter.linear1.bias"] = tensors["adapter.linear1.bias"].to(torch.int32)
    tensors["encoder.blocks.0.attn.key.bias"] = torch.zeros(64)
    tensors["vocoder.weight"] = torch.zeros(2, 3)
    write_tensors(source, tensors)
    with pytest.raises(CheckpointError, match="5 problems") as error:
        hub.import_weights(source, tmp_path / "out")
    for problem in (
        "missing encoder.blocks.1.attn.key.weight [64, 64]",
        "misshapen model.layers.2.mlp.down_proj.weight: [112, 48], expected [48, 112]",
        "adapter.linear1.bias is I32, not one of F64, F32, F16, BF16",
        "unexpected encoder.blocks.0.attn.key.bias [64]",
        "unexpected vocoder.weight [2, 3]",
    ):
        assert problem in str(error.value)
    assert str(source) in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source"]
    assert len(hub.inspect_folder(source).problems) == 5


TIE = (
    r"set tie_word_embeddings to false in config.json \(wherever it is there\),"
    r" or remove lm_head.weight"
)


def test_a_head_beside_tied_embeddings_must_be_the_same(tmp_path, monkeypatch):
    source = random_folder(tmp_path / "source")
    edit_json(
        source / "config.json",
        lambda values: values["text_config"].update(tie_word_embeddings=True),
    )
    with pytest.raises(
        CheckpointError,
        match=rf"differs from model.embed_tokens.weight \(first in row 0\), .*{TIE}",
    ):
        hub.import_weights(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tensors = read_tensors(source)
    embedding = tensors["model.embed_tokens.weight"]
    # Blocks of seven rows, the last one shorter.
    monkeypatch.setattr(hf_folder, "BLOCK_ELEMENTS", 7 * 48)
    for head in (
        embedding.clone(),
        embedding.float(),
        torch.where(embedding == 0, -embedding, embedding),
    ):
        write_tensors(source, tensors | {"lm_head.weight": head})
        assert hub.inspect_folder(source).skipped_tensors == ("lm_head.weight",)
        assert hub.inspect_folder(source).problems == ()
    hub.import_weights(source, tmp_path / "checkpoint")
    assert hub.read_model_config(tmp_path / "checkpoint").decoder.tied_embeddings
    assert "lm_head" not in hub.read_parameters(source, parts=["decoder"])["decoder"]
    different = embedding.clone()
    different[299, 5] += 1
    for head, where in (
        (different, "first in row 299"),
        (embedding[:299].clone(), r"\[299, 48\] and \[300, 48\]"),
    ):
        write_tensors(source, tensors | {"lm_head.weight": head})
        with pytest.raises(CheckpointError, match=rf"{where}.*{TIE}"):
            hub.read_parameters(source, parts=["decoder"])
        assert len(hub.inspect_folder(source).problems) == 1
        assert hub.read_parameters(source, parts=["encoder"])


def test_tied_embeddings_under_the_name_of_the_head(tmp_path):
    """safetensors' own `save_model` keeps one name of a tensor that has two."""
    source = random_folder(tmp_path / "source", with_decoder(tied_embeddings=True))
    tensors = read_tensors(source)
    before = hub.read_parameters(source)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write_tensors(source, tensors)
    jax.tree.map(np.testing.assert_array_equal, before, hub.read_parameters(source))
    edit_json(
        source / "config.json",
        lambda values: values["text_config"].update(tie_word_embeddings=False),
    )
    edit_json(source / "config.json", lambda values: values.update(tie_word_embeddings=False))
    write_tensors(
        source,
        {
            ("model.embed_tokens.weight" if name == "lm_head.weight" else name): tensor
            for name, tensor in tensors.items()
        },
    )
    with pytest.raises(
        CheckpointError,
        match=r"missing lm_head.weight \[300, 48\] \(where the embedding is the head too",
    ):
        hub.read_parameters(source)


DERIVED = {
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "model.layers.{i}.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 512, 8),
    "model.layers.{i}.self_attn.rotary_emb.sin_cached": torch.ones(1, 1, 512, 8),
    "model.layers.{i}.self_attn.masked_bias": torch.tensor(-1e4),
    "model.layers.{i}.self_attn.bias": torch.ones(1, 1, 512, 512, dtype=torch.bool),
    "model.rotary_emb.inv_freq": torch.ones(4),
    "model.rotary_emb.original_inv_freq": torch.ones(4),
    "model.rotary_emb.cos_sin_cache": torch.ones(512, 8),
    "model.position_ids": torch.arange(512)[None],
    "encoder.blocks.{i}.attn.bias": torch.ones(1, 1, 15, 15, dtype=torch.uint8),
    "position_ids": torch.arange(512),
}


def test_buffers_that_follow_from_the_config_are_left_out(tmp_path):
    source = random_folder(tmp_path / "source")
    tensors = read_tensors(source)
    derived = {
        name.format(i=i): tensor.clone() for name, tensor in DERIVED.items() for i in range(2)
    }
    write_tensors(source, tensors | derived)
    found = hub.inspect_folder(source)
    assert set(found.skipped_tensors) == set(derived)
    assert found.problems == ()
    hub.import_weights(source, tmp_path / "checkpoint")
    hub.export_weights(tmp_path / "checkpoint", tmp_path / "exported")
    write_tensors(source, tensors)
    assert_same_tensors(source, tmp_path / "exported")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.bias", (48,)),  # a weight, by its shape
        ("encoder.blocks.0.attn.bias", (2, 64)),
        ("model.layers.0.self_attn.masked_bias", (8,)),
        ("model.layers.0.self_attn.rotary_emb.weight", (4,)),
        ("model.layers.0.self_attn.q_proj.inv_freq", (4,)),
        ("model.layers.3.input_layernorm.weight", (48,)),
    ],
)
def test_a_tensor_that_does_not_follow_is_unexpected(tmp_path, name, shape):
    source = random_folder(tmp_path / "source")
    write_tensors(source, read_tensors(source) | {name: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=f"unexpected {name}"):
        hub.import_weights(source, tmp_path / "out")


def test_names_of_a_wrapped_model_are_recognised(tmp_path):
    source = random_folder(tmp_path / "source")
    write_tensors(
        source, {f"module.{name}": tensor for name, tensor in read_tensors(source).items()}
    )
    with pytest.raises(
        CheckpointError, match=r"problems; its names begin with 'module.', as a wrapped model's"
    ) as error:
        hub.import_weights(source, tmp_path / "out")
    assert "which `python -m tools.convert_weights inspect" in str(error.value)
    assert len(str(error.value)) < 3000


def test_layers_of_different_dtypes(tmp_path):
    source = random_folder(tmp_path / "source")
    tensors = read_tensors(source)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].float()
    write_tensors(source, tensors)
    with pytest.raises(
        CheckpointError, match=f"layers.0.mlp.up_proj.weight is BF16, {name} is F32"
    ):
        hub.import_weights(source, tmp_path / "out")
    hub.import_weights(source, tmp_path / "out", dtype=FLOAT32)


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_an_output_that_exists_is_refused_first(tmp_path, occupied):
    output = tmp_path / "out"
    if occupied == "folder":
        output.mkdir()
        (output / "precious").touch()
    else:
        output.touch()
    source = random_folder(tmp_path / "source")
    with pytest.raises(OutputError, match="out already exists"):
        hub.import_weights(source, output)
    hub.import_weights(source, tmp_path / "checkpoint")
    with pytest.raises(OutputError, match="out already exists"):
        hub.export_weights(tmp_path / "checkpoint", output)
    with pytest.raises(OutputError, match="out already exists"):
        random_folder(output)
    assert output.is_file() or [file.name for file in output.iterdir()] == ["precious"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    source = random_folder(tmp_path / "source")
    hub.import_weights(source, tmp_path / "checkpoint")
    before = sorted(tmp_path.iterdir())

    def interrupt(done, total):
        assert len(sorted(tmp_path.rglob("*.incomplete"))) == 1
        if done > total / 2:
            raise KeyboardInterrupt

    for run in (
        lambda: hub.import_weights(source, tmp_path / "deep" / "out", progress=interrupt),
        lambda: hub.export_weights(tmp_path / "checkpoint", tmp_path / "out", progress=interrupt),
        lambda: random_folder(tmp_path / "out", progress=interrupt),
    ):
        with pytest.raises(KeyboardInterrupt):
            run()
        assert sorted(tmp_path.iterdir()) == before


def test_leftovers_of_a_killed_import_are_removed_and_those_of_a_running_one_kept(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    beside = temporary_path(tmp_path / "out").name
    names = [
        beside.replace(f"-{os.getpid()}.", f"-{number}.")
        for number in (ended.pid, os.getpid(), os.getppid())
    ]
    elsewhere = names[0].replace(".out.", ".out.another_")
    left = {name: tmp_path / name for name in (*names, elsewhere)}
    for folder in left.values():
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
    random_folder(tmp_path / "out")
    assert [folder.exists() for folder in left.values()] == [False, False, True, True]


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    source = random_folder(tmp_path / "source")
    size = sum(tensor.nbytes for tensor in read_tensors(source).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=size - 1))
    with pytest.raises(OutputError, match=r"out needs 0.0 GB, and .* has 0.0 GB free"):
        hub.import_weights(source, tmp_path / "deep" / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=size))
    hub.import_weights(source, tmp_path / "deep" / "out")


def test_random_weights_depend_on_seed_and_name_only(tmp_path):
    first = read_tensors(random_folder(tmp_path / "first", dtype=FLOAT32))
    narrow = read_tensors(
        random_folder(tmp_path / "narrow", dtype=BFLOAT16, max_shard_bytes=10_000)
    )
    other = read_tensors(random_folder(tmp_path / "other", dtype=FLOAT32, seed=1))
    for name, tensor in first.items():
        assert torch.equal(narrow[name], tensor.bfloat16()), name
        assert not torch.isclose(other[name], tensor, atol=1e-9).all(), name
        center = (
            1.0
            if ("norm" in name and name.endswith("weight")) or name.endswith("_ln.weight")
            else 0.0
        )
        assert tensor.mean() == pytest.approx(center, abs=0.02), name
        assert tensor.std() == pytest.approx(0.02, rel=0.5), name
    layers = [first[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)]
    assert not torch.equal(layers[0], layers[1])
