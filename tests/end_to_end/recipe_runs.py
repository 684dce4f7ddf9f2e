"""The commands of docs/recipe.md, and a small copy of everything that they read."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request

from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioConfig

from stepaudio_jax.hub import read_model_config
from stepaudio_jax.serving.preferences.store import PreferenceStore
from tests.end_to_end.runs import ROOT, free_port
from tests.end_to_end.tones import write_lines
from tests.qwen2 import qwen2_config
from tests.serving.preferences.studies import RUBRIC, compare, prefer, sound
from tests.serving.preferences.test_records import both

PAGE = ROOT / "docs" / "recipe.md"
TINY = ROOT / "models" / "tiny_base"
JUDGE_PORT = "8001"  # of the judge's server, on the page
BENCHMARKS_JUDGE = "https://HOST/v1"  # on the page
# Task of the page -> its sample in ../shared/benchmarks.
SAMPLES = {
    "audio_mc": "AudioMC",
    "big_bench_audio": "BigBenchAudio",
    "mmsu": "MMSU",
    "mmau_mini": "MMAU/sample_hf.parquet",
    "spoken_mqa": "SpokenMQA",
    "step_caption": "StepCaption",
    "step_du": "StepDU",
    "step_spqa": "StepSPQA",
}
_SMALL_COMPUTE = ["--config.compute.dtype=float32", "--config.compute.loss_chunks=1"]
# A configuration -> what is small about its stages here.
_SMALL_STAGES = {
    "midtrain_32b": {
        stage: {
            "steps": 2,
            "data.batch_size": 2,
            "data.seq_len": 512,
            "data.audio_chunks_per_seq": 2,
        }
        for stage in ("adaptor", "midtrain", "sft")
    },
    "sft_32b": {"sft": {"steps": 2, "data.batch_size": 1}},
    "rlhf_32b": {
        "rlhf": {
            "steps": 2,
            "data.batch_size": 2,
            "data.seq_len": 512,
            "objective.rollout.num_prompts": 2,
            "objective.rollout.num_generations": 2,
            "objective.rollout.max_new_tokens": 24,
            "objective.rollout.slots": 4,
            "objective.rollout.tensor": 1,
            "objective.judge.max_tokens": 64,
            # Two steps do not make a judge that keeps to the form of a verdict.
            "objective.judge.max_abstention_rate": 1.0,
        }
    },
}


def page_commands() -> list[list[str]]:
    """Returns the words of each command of the page, in order; continued lines are one command."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def plan_commands() -> list[list[str]]:
    """Returns the page's commands of the planner."""
    return [command for command in page_commands() if is_program(command, "launch.plan")]


def is_program(command: list[str], module: str) -> bool:
    return command[:3] == ["python", "-m", module]


def short_arguments(command: list[str]) -> list[str]:
    """Returns the arguments that make a command of the page short."""
    if is_program(command, "launch.train"):
        config = next(word for word in command if word.startswith("--config="))
        name = pathlib.PurePath(config).stem
        return [
            *_SMALL_COMPUTE,
            *(
                f"--config.stages.{stage}.{key}={value}"
                for stage, values in _SMALL_STAGES[name].items()
                for key, value in values.items()
            ),
        ]
    if is_program(command, "launch.serve"):
        return ["--slots=2", "--slot-tokens=4096"]
    if is_program(command, "launch.judge") and "--model" in command:
        return ["--max-tokens=64"]
    if is_program(command, "launch.evaluate"):
        return ["--limit=2", "--max-new-tokens=16", "--slots=4", "--judge-key-variable="]
    return []


class Workspace:
    """A folder in which the page's commands find what they name.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.replacements = {JUDGE_PORT: str(free_port())}
        self._servers: list[subprocess.Popen[bytes]] = []
        (folder / "configs").symlink_to(ROOT / "configs")
        _write_base_models(folder)
        _write_dialogues(folder / "data")

    def run(self, command: list[str]) -> "subprocess.CompletedProcess[str]":
        """Runs a command of the page, made short, to its end."""
        return subprocess.run(
            self._words(command),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
        )

    def serve(self, command: list[str]) -> str:
        """Starts a server of the page, and returns its address once it answers."""
        words = self._words(command)
        port = words[words.index("--port") + 1] if "--port" in words else str(free_port())
        if "--port" not in words:
            words += ["--port", port]
        with (self.folder / f"server_{port}.log").open("wb") as log:
            server = subprocess.Popen(
                words, cwd=self.folder, env=self._environment(), stdout=log, stderr=log
            )
        self._servers.append(server)
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None and not _answers(f"{address}/health"):
            time.sleep(0.2)
        log_text = (self.folder / f"server_{port}.log").read_text(encoding="utf-8")
        assert server.poll() is None, log_text
        return address

    def stop_last_server(self) -> None:
        """Stops the server that was started last."""
        server = self._servers.pop()
        server.terminate()
        server.wait()

    def close(self) -> None:
        """Stops all servers."""
        while self._servers:
            self.stop_last_server()

    def judge_dialogues(self, study: str, number: int) -> None:
        """Keeps the verdicts of a person on spoken dialogues, half of them with a rubric."""
        store = PreferenceStore(self.folder / study)
        for index in range(number):
            content = [sound(0.5, transcript="a tone"), {"type": "text", "text": "What is it?"}]
            a, b = f"A tone, number {index} of {study}.", f"I do not know {index}."
            rubric = RUBRIC if index % 2 else []
            assignment = compare(store, a=a, b=b, content=content, rubric=rubric)
            marks = both((True, False), (False, True), assignment) if rubric else []
            prefer(store, assignment, "ab"[index % 3 == 0], 1, criteria=marks)
        store.close()

    def _words(self, command: list[str]) -> list[str]:
        python, *words = [*command, *short_arguments(command)]
        assert python == "python"
        for text, replacement in self.replacements.items():
            words = [word.replace(text, replacement) for word in words]
        return [sys.executable, *words]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}


def link_benchmarks(folder: pathlib.Path, shared: pathlib.Path) -> None:
    """Puts a sample of each benchmark where the page has it."""
    folder.mkdir()
    for task, sample in SAMPLES.items():
        source = shared / sample
        if source.is_dir():
            (folder / task).symlink_to(source)
        else:
            (folder / task).mkdir()
            shutil.copy(source, folder / task / source.name)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def _write_base_models(folder: pathlib.Path) -> None:
    """Writes the decoder of the tiny model as a Qwen2 and its encoder as a Qwen2-Audio."""
    config = read_model_config(TINY)
    tensors = load_file(TINY / "model-00001-of-00001.safetensors")
    decoder, audio = folder / "Qwen2.5-32B", folder / "Qwen2-Audio-7B"
    qwen2 = qwen2_config(config.decoder)
    for path, hf_config, kept in (
        (
            decoder,
            qwen2,
            {n: t for n, t in tensors.items() if n.startswith(("model.", "lm_head."))},
        ),
        (
            audio,
            Qwen2AudioConfig(
                audio_config={
                    "d_model": config.encoder.hidden,
                    "encoder_layers": config.encoder.layers,
                    "encoder_attention_heads": config.encoder.heads,
                    "encoder_ffn_dim": config.encoder.ffn,
                    "num_mel_bins": config.encoder.mel_bins,
                    "max_source_positions": config.encoder.positions,
                },
                text_config=qwen2.to_dict(),
            ),
            {_audio_name(n): t for n, t in tensors.items() if n.startswith("encoder.")},
        ),
    ):
        path.mkdir()
        hf_config.save_pretrained(path)
        save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            shutil.copy(TINY / file, path / file)


def _audio_name(name: str) -> str:
    """Returns Qwen2-Audio's name of a tensor of the encoder."""
    name = re.sub(r"^encoder\.blocks\.", "audio_tower.layers.", name)
    name = re.sub(r"^encoder\.", "audio_tower.", name)
    for ours, theirs in (
        ("attn.query", "self_attn.q_proj"),
        ("attn.key", "self_attn.k_proj"),
        ("attn.value", "self_attn.v_proj"),
        ("attn.out", "self_attn.out_proj"),
        ("attn_ln", "self_attn_layer_norm"),
        ("mlp_ln", "final_layer_norm"),
        ("mlp.0", "fc1"),
        ("mlp.2", "fc2"),
        ("after_norm", "layer_norm"),
    ):
        name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, name)
    return name.replace("positional_embedding", "embed_positions")


def _write_dialogues(folder: pathlib.Path) -> None:
    """Writes the mixture of mid-training and SFT from the clips that ship with the project."""
    clips = sorted((ROOT / "examples" / "clips").glob("*.flac"))
    heard = [
        _dialogue([{"type": "audio", "audio": str(clip)}, {"type": "text", "text": "What is it?"}])
        for clip in clips
    ]
    read = [_dialogue(f"What is {number} and one?") for number in range(4)]
    for name, lines in (
        ("midtrain/speech", heard[:2]),
        ("midtrain/sound", heard[2:]),
        ("midtrain/text", read),
        ("sft/audio", heard),
        ("sft/text", read),
    ):
        (folder / name).mkdir(parents=True)
        write_lines(folder / name / "part.jsonl", lines)


def _dialogue(content: object) -> dict[str, object]:
    reply = {"role": "assistant", "reasoning_content": "I hear it.", "content": "A voice."}
    return {"messages": [{"role": "user", "content": content}, reply]}


def read_json(text: str) -> dict:
    """Returns the JSON object that a command printed."""
    return json.loads(text[text.index("{") :])
