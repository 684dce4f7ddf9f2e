"""A model that hears nothing and a scripted judge, each behind a real HTTP server.

python -m tests.evaluation.chat_servers deaf|judge     # serves until it is stopped
"""

import hashlib
import json
import re
import sys
import threading

from stepaudio_jax.evaluation.tasks.step_caption import FIELDS
from tests.judge.judge_server import JudgeServer

REPLIES = (
    *("<think>\nI hear nothing.\n</think>\nB", "The answer is 12.", "A woman, young and calm."),
    *("不知道。", "说话人是一位年轻女性，语速中等。", "yes", "I cannot hear anything."),
)


def reply_without_hearing(body):
    """Returns one of `REPLIES`, by what is written in the prompt and the seed."""
    texts = [part for message in body["messages"] for part in _texts(message["content"])]
    return REPLIES[_number(json.dumps([texts, body.get("seed")])) % len(REPLIES)]


def verdict_in_form(body):
    """Returns a verdict in the form that a benchmark's judge prompt asks for."""
    text = body["messages"][-1]["content"]
    number = _number(text)
    if "criteria_met" in text:
        verdict = {"explanation": "It does.", "criteria_met": number % 3 > 0}
        return f"```json\n{json.dumps(verdict)}\n```"
    if "overall_score" in text:
        scores = {field: {"score": (number % 5) / 4, "reason": "-"} for field in FIELDS}
        speakers = [
            {"speaker_index": index + 1, "field_scores": scores, "average_score": (number % 5) / 4}
            for index in range(len(re.findall(r"speaker_index: \d", text)))
        ]
        verdict = {
            "multi_speaker_judgment_correct": number % 5 > 0,
            "multi_speaker_judgment_reason": "-",
            "overall_score": (number % 5) / 4,
            "speakers": speakers,
        }
        return json.dumps(verdict)
    if "matched_points" in text:
        score = (number % 3) / 2
        return json.dumps(
            {
                "score": score,
                "matched_points": [],
                "missing_or_incorrect_points": [],
                "reason": "-",
            }
        )
    if "INCORRECT" in text:
        return "CORRECT" if number % 2 else "INCORRECT."
    if form := re.search(r'^\[\{"name".*\]$', text, re.MULTILINE):
        points = [criterion | {"score": number % 2} for criterion in json.loads(form[0])]
        return json.dumps(points)
    assert "YES" in text, text
    return "YES" if number % 2 else "NO"


def _texts(content):
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _number(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


if __name__ == "__main__":
    server = JudgeServer({"deaf": reply_without_hearing, "judge": verdict_in_form}[sys.argv[1]])
    print(server.url, flush=True)
    threading.Event().wait()
