"""Measures a server beside `transformers serve` (continuous batching): greedy, in fp32, on a CPU.

`python -m benchmarks.serve` starts both on the same 30 M-parameter text decoder, each a process of
its own, and is itself the client, a third. At 1, 8 and 32 clients it prints tokens a second, the
time to the first token (median, p95) and the time between tokens (p95); the servers take turns.
Then, of ours alone: the time to the first token of a dialogue's third turn with sound, with the
beginning kept and without; and the gaps of 8 streams while a prompt of 4 096 tokens is admitted.
`--smoke` does little of each, to see whether it runs.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
import transformers
from safetensors.numpy import load_file, save_file
from transformers import Qwen2ForCausalLM

from benchmarks.allocator import allocator_environment
from benchmarks.small_model import small_model
from stepaudio_jax.hub import write_random_weights
from stepaudio_jax.text import Tokenizer
from tests.qwen2 import qwen2_config

OURS, PEER = "stepaudio_jax", f"transformers {transformers.__version__}"
MODEL = small_model(max_positions=8192)
CLIENTS = (1, 8, 32)
NEW_TOKENS, PROMPT_TOKENS = 128, 64
LONG_PROMPT_TOKENS, STREAMS = 4096, 8
CLIPS_S = (10.0, 10.0, 2.0)  # of the turns of a dialogue
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class Request:
    """What the client saw of a stream.

    Attributes:
        started: when it was sent, in seconds.
        pieces: when each piece with text came.
        tokens: of its reply.
    """

    started: float
    pieces: tuple[float, ...]
    tokens: int

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.started

    @property
    def between(self) -> float:
        """Seconds from a token to the next, on average."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds from each piece to the next."""
        return np.diff(self.pieces).tolist()


def main() -> None:
    """Parses arguments, runs, and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="little of each")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    parser.add_argument("--requests", type=int, default=4, help="of each client in a turn")
    options = parser.parse_args()
    rounds, requests = (1, 1) if options.smoke else (options.rounds, options.requests)
    clients = (1, 2) if options.smoke else CLIENTS
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = write_models(pathlib.Path(folder))
        with our_server(ours) as our_port, peer_server(peer) as peer_port:
            ports = {OURS: (our_port, "model"), PEER: (peer_port, str(peer))}
            compare(ports, clients, rounds, requests)
            long_prompt(our_port, tokens=256 if options.smoke else LONG_PROMPT_TOKENS)
        with (
            our_server(ours) as port,
            our_server(ours, "--prefix-cache-gb=0", "--audio-cache-gb=0") as computing_port,
        ):
            third_turn(port, computing_port, dialogues=rounds if options.smoke else 5 * rounds)


def write_models(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the model of each server with random weights; returns the two folders.

    Neither writes a token that cannot be seen in a stream, so each piece of a reply is counted.
    """
    write_random_weights(MODEL, folder / "ours", tokenizer=tokenizer(), dtype=np.dtype(np.float32))
    peer = Qwen2ForCausalLM(qwen2_config(MODEL.decoder)).eval()
    peer.generation_config.do_sample = False
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = tokenizer().special.pad
    peer.save_pretrained(folder / "peer")
    tokenizer().save(folder / "peer")
    for model in (folder / "ours", folder / "peer"):
        (file,) = model.glob("*.safetensors")
        tensors = load_file(file)
        tensors["lm_head.weight"][unseen_tokens()] = 0  # some other token's logit is above 0
        save_file(tensors, file, metadata={"format": "pt"})
    return folder / "ours", folder / "peer"


def unseen_tokens() -> list[int]:
    """Returns the tokens whose text is empty, white space, or left out as special."""
    texts = map(tokenizer().token_bytes, range(MODEL.decoder.vocab_size))
    special = set(dataclasses.asdict(tokenizer().special).values())
    return [token for token, text in enumerate(texts) if not text.strip() or token in special]


def our_server(folder: pathlib.Path, *flags: str) -> contextlib.AbstractContextManager[int]:
    """Starts our server; yields its port once it answers."""
    command = ["launch.serve", f"--model={folder}", "--model-name=model", "--dtype=float32"]
    return running_server([*command, "--slots=32", *flags], "/health")


def peer_server(folder: pathlib.Path) -> contextlib.AbstractContextManager[int]:
    """Starts the peer's server; yields its port once it answers."""
    command = ["transformers.cli.transformers", "serve", str(folder), "--continuous-batching"]
    return running_server([*command, "--device=cpu", "--dtype=float32"], "/health")


@contextlib.contextmanager
def running_server(command: Sequence[str], path: str) -> Iterator[int]:
    """Runs a module as a server until the context ends.

    Raises:
        RuntimeError: it ends before it answers, or does not answer in time.
    """
    with socket.create_server((_HOST, 0)) as free:
        port = free.getsockname()[1]
    # What a server prints goes to standard error, so that the figures stand alone.
    process = subprocess.Popen(
        [sys.executable, "-m", *command, f"--host={_HOST}", f"--port={port}"],
        env=allocator_environment(os.environ, keep_freed=False),
        stdout=sys.stderr,
    )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not answers(f"http://{_HOST}:{port}{path}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer; what it printed says why")
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Returns whether a server answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def compare(
    ports: dict[str, tuple[int, str]], clients: Sequence[int], rounds: int, requests: int
) -> None:
    """Prints the figures of both servers for each number of clients, and their ratios."""
    for count in clients:
        seen: dict[str, list[Request]] = {name: [] for name in ports}
        seconds = dict.fromkeys(ports, 0.0)
        for name in ports:
            asyncio.run(load(*ports[name], count, 1, rounds))  # not counted: what is made once
        for number in range(rounds):
            for name in list(ports)[:: 1 if number % 2 == 0 else -1]:
                start = time.perf_counter()
                seen[name] += asyncio.run(load(*ports[name], count, requests, number))
                seconds[name] += time.perf_counter() - start
        speeds = {
            name: sum(request.tokens for request in seen[name]) / seconds[name] for name in ports
        }
        for name in ports:
            first = [request.first for request in seen[name]]
            between = [request.between for request in seen[name]]
            print(
                f"{count} clients, {name}: {speeds[name]:.0f} tokens/s, first token"
                f" {statistics.median(first):.3f} s (p95 {p95(first):.3f}), between tokens p95"
                f" {1000 * p95(between):.1f} ms"
            )
        firsts = [statistics.median(request.first for request in seen[name]) for name in ports]
        print(
            f"{count} clients: {speeds[OURS] / speeds[PEER]:.2f} times the tokens/s, first token in"
            f" {firsts[0] / firsts[1]:.2f} of the time",
            flush=True,
        )


async def load(port: int, model: str, clients: int, requests: int, turn: int) -> list[Request]:
    """Lets some clients send requests, one after the other; returns all of them.

    No prompt comes twice, nor in another turn: servers keep what they have computed of prompts.
    """

    async def client(number: int) -> list[Request]:
        prompts = [
            prompt_text((clients, turn, number, index), PROMPT_TOKENS) for index in range(requests)
        ]
        return [await stream(port, model, [{"role": "user", "content": text}]) for text in prompts]

    return list(itertools.chain(*await asyncio.gather(*map(client, range(clients)))))


async def stream(port: int, model: str, messages: Any, *, new_tokens: int = NEW_TOKENS) -> Request:
    """Sends a request and reads its stream; no client library's time is measured with it.

    Raises:
        RuntimeError: the server refuses it, or the reply is shorter than asked for.
    """
    question = messages[-1]["content"]
    body = json.dumps(
        {
            "model": model,
            "messages": messages,
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {_HOST}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(_HOST, port, limit=1 << 24)
    started = time.perf_counter()
    writer.write(head.encode() + body)
    pieces, lines, finish = [], [], None
    async for line in reader:
        if not line.startswith(b"data: {"):
            lines.append(line)
            continue
        choice = (json.loads(line[6:])["choices"] or [{}])[0]
        finish, delta = choice.get("finish_reason") or finish, choice.get("delta", {})
        text = delta.get("content") or delta.get("reasoning_content")
        # The peer streams the prompt's own text before the reply, its last line break by itself.
        if text and text.strip() and not (isinstance(question, str) and question[:20] in text):
            pieces.append(time.perf_counter())
    writer.close()
    await writer.wait_closed()
    if not lines[0].startswith(b"HTTP/1.1 200") or not pieces or finish != "length":
        raise RuntimeError(f"the server at port {port} answers {b''.join(lines)[:2000]!r}")
    return Request(started, tuple(pieces), new_tokens)


def third_turn(port: int, computing_port: int, *, dialogues: int) -> None:
    """Prints the time to the first token of a dialogue's third turn with sound.

    Args:
        port: of a server that keeps the beginning of a dialogue.
        computing_port: of one that computes it again.
        dialogues: with each server, in turns.
    """

    async def dialogue(port: int, seed: int) -> float:
        messages: list[dict[str, Any]] = []
        for turn, seconds in enumerate(CLIPS_S):
            data = clip((seed, turn), seconds)
            part = {"type": "input_audio", "input_audio": {"data": data}}
            messages.append({"role": "user", "content": [part]})
            request = await stream(port, "model", messages, new_tokens=16)
            messages.append({"role": "assistant", "content": "word " * 8})
        return request.first

    for either in (port, computing_port):
        asyncio.run(dialogue(either, 1000))  # not counted: what is made once
    firsts = [
        [asyncio.run(dialogue(either, seed)) for either in (port, computing_port)]
        for seed in range(dialogues)
    ]
    kept, computed = map(statistics.median, zip(*firsts, strict=True))
    print(
        f"third turn with sound: first token after {kept:.3f} s with its beginning kept,"
        f" {computed:.3f} s without: {kept / computed:.2f}"
    )


def long_prompt(port: int, *, tokens: int) -> None:
    """Prints the gaps of running streams while a long prompt is admitted beside them."""

    async def run() -> list[Request]:
        async def short(number: int) -> Request:
            messages = [{"role": "user", "content": f"stream {number}"}]
            return await stream(port, "model", messages, new_tokens=4 * NEW_TOKENS)

        async def late() -> Request:
            await asyncio.sleep(1.0)
            messages = [{"role": "user", "content": prompt_text((0,), tokens)}]
            return await stream(port, "model", messages, new_tokens=8)

        jobs: list[Awaitable[Request]] = [*map(short, range(STREAMS)), late()]
        return list(await asyncio.gather(*jobs))

    *streams, late = asyncio.run(run())
    # Only the gaps of the time in which the prompt was prefilled.
    gaps = [
        end - start
        for request in streams
        for start, end in zip(request.pieces, request.pieces[1:], strict=False)
        if end > late.started and start < late.pieces[0]
    ]
    median = statistics.median(gap for request in streams for gap in request.gaps)
    p99 = float(np.quantile(gaps, 0.99))
    print(
        f"a prompt of {tokens} tokens beside {STREAMS} streams: first token after"
        f" {late.first:.2f} s; p99 of the streams' gaps {1000 * p99:.1f} ms, their median"
        f" {1000 * median:.1f} ms: {p99 / median:.2f}",
        flush=True,
    )


@functools.cache
@functools.cache
def tokenizer() -> Tokenizer:
    """Returns a tokenizer in which every token of the models is text, but for the special ones."""
    merges = MODEL.decoder.vocab_size - Tokenizer.byte_level().vocab_size
    return Tokenizer.train([random_words((7,), 300_000)], merges)


def random_words(seed: tuple[int, ...], count: int) -> str:
    """Returns words of random letters."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(2, 9, size=count))
    letters = rng.integers(97, 123, size=int(ends[-1]), dtype=np.uint8).tobytes().decode()
    return " ".join(letters[start:end] for start, end in itertools.pairwise([0, *ends]))


def prompt_text(seed: tuple[int, ...], tokens: int) -> str:
    """Returns random words of about so many tokens, and not fewer."""
    words = random_words(seed, tokens)
    ids = tokenizer().encode(words)[:tokens]
    return tokenizer().decode(ids)


def clip(seed: tuple[int, int], seconds: float) -> str:
    """Returns a sound file in base64, another one for each dialogue and turn."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    wave = 0.1 * rng.normal(size=int(seconds * 16_000)).astype(np.float32)
    soundfile.write(buffer, wave, 16_000, format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def p95(values: Sequence[float]) -> float:
    """Returns the 95th percentile."""
    return float(np.quantile(values, 0.95))


if __name__ == "__main__":
    main()
