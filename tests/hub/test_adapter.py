"""PEFT adapters: ours, loaded by peft on transformers' Qwen2; and peft's own, imported."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch

from stepaudio_jax import hub
from stepaudio_jax.config import LoRAConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.peft_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_adapter
from stepaudio_jax.models import abstract_lora
from tests.hub.folders import SMALL, qwen2, random_folder, read_tensors, save_with_tokenizer
from tools.convert_weights.__main__ import main

LORA = LoRAConfig(
    rank=3, alpha=6.0, targets=("query", "key", "value", "output", "gate", "up", "down")
)
TOKENS = torch.arange(1, 30)[None]


def random_adapter(lora=LORA, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)  # noqa: E731
    return hub.Adapter(lora, jax.tree.map(draw, abstract_lora(SMALL, lora).shapes), "a/base")


def written(path, adapter=None):
    path.mkdir()
    write_adapter(path, adapter or random_adapter())
    return path


def logprobs(model):
    with torch.no_grad():
        return torch.log_softmax(model.eval()(TOKENS).logits, dim=-1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns a Step-Audio folder in fp32, an adapter, and a checkpoint that holds both."""
    path = tmp_path_factory.mktemp("adapter")
    random_folder(path / "base", dtype=np.dtype(np.float32), seed=5)
    written(path / "adapter")
    arguments = [
        "--source",
        str(path / "base"),
        "--adapter",
        str(path / "adapter"),
        "--output",
        str(path / "checkpoint"),
    ]
    assert main(["import", *arguments]) == 0
    return path


def decoder_of(folder):
    """Returns transformers' Qwen2 with the decoder of a Step-Audio folder."""
    model = qwen2()
    tensors = {
        name: tensor
        for name, tensor in read_tensors(folder).items()
        if name.startswith(("model.", "lm_head."))
    }
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def test_peft_computes_with_our_adapter_what_our_merged_export_computes(folders, tmp_path, capsys):
    assert (
        main(
            [
                "export",
                "--source",
                str(folders / "checkpoint"),
                "--output",
                str(tmp_path / "merged"),
            ]
        )
        == 0
    )
    assert "merged in float32, and all weights are float32" in capsys.readouterr().out
    arguments = [
        "--source",
        str(folders / "checkpoint"),
        "--output",
        str(tmp_path / "peft"),
        "--adapter",
        "--base",
        "b/c",
    ]
    assert main(["export", *arguments]) == 0
    config = json.loads((tmp_path / "peft" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, "b/c")
    base = decoder_of(folders / "base")
    before = logprobs(base)
    theirs = logprobs(peft.PeftModel.from_pretrained(base, tmp_path / "peft"))
    ours = logprobs(decoder_of(tmp_path / "merged"))
    assert (ours - before).abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_has_written_is_read(tmp_path, rslora):
    model = qwen2()
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": rslora,
        "target_modules": ["q_proj", "down_proj"],
    }
    model = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    )
    model.save_pretrained(tmp_path)
    adapter = hub.read_adapter(tmp_path, SMALL.decoder)
    assert adapter.lora == LoRAConfig(
        rank=4, alpha=6.0 * (2.0 if rslora else 1.0), targets=("query", "down")
    )
    layer = model.base_model.model.model.layers[1]
    for ours, theirs in (("query", layer.self_attn.q_proj), ("down", layer.mlp.down_proj)):
        pair = adapter.matrices["attention" if ours == "query" else "mlp"][ours]
        inputs, outputs = theirs.in_features, theirs.out_features
        product = (
            adapter.lora.scale
            * pair["down"][1].reshape(inputs, 4)
            @ pair["up"][1].reshape(4, outputs)
        )
        np.testing.assert_allclose(
            product.T, theirs.get_delta_weight("default").detach().numpy(), atol=1e-6
        )


def test_adapter_round_trip(tmp_path):
    adapter = random_adapter(dataclasses.replace(LORA, rank=2, targets=("key", "up")))
    again = hub.read_adapter(written(tmp_path / "adapter", adapter), SMALL.decoder)
    assert (again.lora, again.base) == (adapter.lora, adapter.base)
    jax.tree.map(np.testing.assert_array_equal, again.matrices, adapter.matrices)


def edit_config(folder, **changes):
    values = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not LORA"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern="),
        ({"layers_to_transform": [0]}, "layers_to_transform="),
        ({"init_lora_weights": "pissa"}, "convert it to plain LoRA"),
        ({"r": 0}, "r=0 is not a positive whole number"),
        ({"lora_alpha": "x"}, "lora_alpha='x' is not a positive number"),
        ({"r": 5}, r"does not fit r=5 .*lora_A is \[3, 48\], expected \[5, 48\]"),
    ],
)
def test_variants_of_lora_are_refused(tmp_path, changes, message):
    folder = written(tmp_path / "adapter")
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        hub.read_adapter(folder, SMALL.decoder)


def test_adapter_of_other_shapes_is_refused(tmp_path, folders):
    folder = written(tmp_path / "adapter")
    for changes, message in (
        ({"hidden": 56}, r"lora_A is \[3, 48\], expected \[3, 56\]"),
        ({"layers": 4}, r"missing model\.layers\.3\.self_attn"),
        ({"layers": 2}, "it adapts layers 2"),
    ):
        with pytest.raises(CheckpointError, match=message):
            hub.read_adapter(folder, dataclasses.replace(SMALL.decoder, **changes))
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        hub.read_adapter(folder, SMALL.decoder)
    with pytest.raises(CheckpointError, match=f"has no {ADAPTER_CONFIG}"):
        hub.read_adapter(folders / "base", SMALL.decoder)


def test_modules_that_have_no_adapter_here_are_named(tmp_path):
    model = peft.get_peft_model(qwen2(), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"adapts what no adapter here can: base_model\.model\.lm_head\."
    ):
        hub.read_adapter(tmp_path, SMALL.decoder)


def test_a_checkpoint_without_an_adapter_exports_none(tmp_path, capsys):
    save_with_tokenizer(qwen2(), tmp_path / "qwen")
    random_folder(tmp_path / "base")
    assert (
        main(["import", "--source", str(tmp_path / "base"), "--output", str(tmp_path / "plain")])
        == 0
    )
    assert (
        main(
            [
                "export",
                "--source",
                str(tmp_path / "plain"),
                "--output",
                str(tmp_path / "out"),
                "--adapter",
            ]
        )
        == 2
    )
    assert "has no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_tells_of_the_adapter(folders, capsys):
    assert main(["inspect", str(folders / "checkpoint")]) == 0
    assert (
        "with a LoRA adapter beside it (rank 3, alpha 6, query, key, value"
        in capsys.readouterr().out
    )
