"""A judge behind a real HTTP server that prefers the longer reply."""

import http.server
import json
import re
import threading


class JudgeServer:
    """Prefers the longer reply; `trouble` may handle a request before it is answered.

    With another `write`, which makes the content of a reply from the body of a request, it is any
    chat server.
    """

    def __init__(self, write=None):
        write = write or answer
        self.requests, self.open, self.max_open = [], 0, 0
        self.trouble = lambda number, handler: False
        lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append((self.path, dict(self.headers), body))
                    number = len(server.requests)
                    server.open += 1
                    server.max_open = max(server.max_open, server.open)
                try:
                    handled = server.trouble(number, self)
                finally:
                    with lock:  # before the reply, after which the client may send the next request
                        server.open -= 1
                if not handled:
                    self.reply(
                        200,
                        {
                            "choices": [
                                {"message": {"content": write(body)}, "finish_reason": "stop"}
                            ]
                        },
                    )

            def reply(self, status, value, headers=()):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers:
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()


def answer(body):
    question = body["messages"][0]["content"]
    first, second, code = replies_and_code(question)
    better = (
        "a is better"
        if len(first) > len(second)
        else "b is better"
        if len(first) < len(second)
        else "both are equal"
    )
    verdict = {"comparison": better}
    if "Say besides" in question:
        verdict["criteria"] = [{"a": "ok" in first, "b": "ok" in second}]
    return f"Thinking.\n{json.dumps(verdict | {'code': code})}"


def replies_and_code(question):
    """Returns reply A, reply B and the code of a question in one of the project's templates."""
    code = re.search(r"The code of this question is ([0-9a-f]+)\.", question)[1]
    side = "side" if f"=== side A {code} ===\n" in question else "reply"
    first, second = question.split(f"=== {side} A {code} ===\n")[1].split(
        f"\n=== {side} B {code} ===\n"
    )
    return first, second.split(f"\n=== end {code} ===\n")[0], code
