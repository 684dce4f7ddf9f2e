"""`launch.serve` as a program: its start, SIGTERM, two processes of one server, mistakes."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

from launch import generate, serve
from stepaudio_jax.hub import ArrayReader, export_parameters
from tests.generation.small_model import BYTES
from tests.serving.running_server import (
    SERVED_CONFIG,
    audio_part,
    served_parameters,
    user,
)

HOST = "127.0.0.1"
FLAGS = (
    "--model-name=m",
    "--dtype=float32",
    "--slots=4",
    "--slot-tokens=512",
    "--prefill-chunk=64",
)
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    export_parameters(ArrayReader(served_parameters()), SERVED_CONFIG, BYTES, path)
    return path


def free_port():
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(folder, *flags, devices=1):
    """Runs `launch.serve`; yields the process and its port."""
    port = free_port()
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-m", "launch.serve", f"--model={folder}", f"--port={port}"]
    process = subprocess.Popen([*command, *FLAGS, *flags], env=environment)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process, port):
    """Returns what /health says until it says 200."""
    statuses = []
    while not statuses or statuses[-1] != 200:
        assert process.poll() is None
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        with contextlib.suppress(ConnectionError):
            connection.request("GET", "/health")
            statuses.append(connection.getresponse().status)
        connection.close()
        time.sleep(0.1)
    return statuses


def client_of(port):
    return openai.OpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="x", max_retries=0)


def answers(port):
    """Replies to words and to sound, greedy and sampled."""
    client = client_of(port)
    return [
        client.chat.completions.create(
            model="m",
            messages=[user(*parts)],
            max_tokens=24,
            logprobs=True,
            extra_body=NO_THINKING,
            **options,
        )
        .choices[0]
        .message.content
        for parts in (("Say it " * 12,), ("Listen: ", audio_part(1.0, seed=2)))
        for options in ({"temperature": 0}, {"temperature": 1, "seed": 3})
    ]


def test_mistakes_end_the_program_with_one_line(folder, capsys, monkeypatch):
    for flags, words in (
        (["--port=99999"], "port=99999"),
        (["--also=second"], "NAME=DIR"),
        ([f"--also=m={folder}"], "taken"),
        (["--slots=0"], "slots=0"),
        (["--api-key-file=/nothing"], "api_key_file"),
        (["--audio-domain=http://x.org"], "audio_domains"),
        (["--model=/nothing"], "/nothing"),
    ):
        with pytest.raises(SystemExit) as caught:
            serve.main([f"--model={folder}", *FLAGS, "--port=0", *flags])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line.startswith("error: ")
        assert words in line


@pytest.mark.slow
def test_sigterm_under_load_ends_running_streams_whole(folder, tmp_path):
    with running(folder) as (process, port):
        assert 503 in wait_until_ready(process, port)
        client = client_of(port)

        def stream():
            chunks = client.chat.completions.create(
                model="m",
                messages=[user("Say it")],
                max_tokens=400,
                temperature=0,
                stream=True,
                extra_body=NO_THINKING,
            )
            next(chunks)
            return chunks

        def text(chunks):
            return [
                (chunk.choices[0].delta.content, chunk.choices[0].finish_reason) for chunk in chunks
            ]

        def said(pieces):
            return "".join(content or "" for content, _ in pieces), pieces[-1][1]

        expected = said(text(stream()))
        # The same greedy tokens as the program that answers files.
        source, replies = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(json.dumps({"messages": [{"role": "user", "content": "Say it"}]}) + "\n")
        generate.main(
            [
                *(f"--model={folder}", f"--input={source}", f"--output={replies}"),
                *("--temperature=0", "--max-new-tokens=40"),
            ]
        )
        with_reasoning = client.chat.completions.create(
            model="m", messages=[user("Say it")], max_tokens=40, temperature=0
        )
        line = json.loads(replies.read_text(encoding="utf-8"))
        message = with_reasoning.choices[0].message
        assert (message.reasoning or "", message.content) == (line["reasoning"], line["reply"])
        running_streams = [stream() for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(openai.APIError):
            stream()
        assert [said(text(chunks)) for chunks in running_streams] == [expected] * 4
        assert process.wait(60) == 0


@pytest.mark.slow
def test_two_processes_answer_as_one(folder):
    with running(folder) as (process, port):
        wait_until_ready(process, port)
        expected = answers(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    address = f"{HOST}:{free_port()}"
    with (
        running(folder, f"--distributed={address},2,0") as (first, port),
        running(folder, f"--distributed={address},2,1") as (second, _),
    ):
        wait_until_ready(first, port)
        assert answers(port) == expected
        with pytest.raises(openai.APITimeoutError):  # a client that goes away
            client_of(port).with_options(timeout=0.3).chat.completions.create(
                model="m", messages=[user("x")], max_tokens=400
            )
        time.sleep(3)  # without work, the others are kept waiting
        assert answers(port) == expected
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        assert (first.wait(60), second.wait(60)) == (0, 0)
