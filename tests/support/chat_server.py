"""A real HTTP server on loopback that speaks chat completions and misbehaves on order."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CODE = "```python\nimport torch.nn as nn\n\n\nclass ModelNew(nn.Module):\n    pass\n```"


def completion(text, *, finish="stop", usage=None, model="served-model"):
    """The body of a chat completion as OpenAI writes it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": usage or {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.seen.append({"path": self.path, "body": json.loads(self.rfile.read(length))})
        self.server.next_behaviour()(self)

    def answer(self, status, tree, headers=()):
        data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


Behaviour = Callable[[Handler], None]


def says(text, **fields) -> Behaviour:
    return lambda handler: handler.answer(200, completion(text, **fields))


def fails(status, message="no", code=None, retry_after=None) -> Behaviour:
    headers = [] if retry_after is None else [("Retry-After", retry_after)]
    return lambda handler: handler.answer(
        status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, headers
    )


def slow(seconds) -> Behaviour:
    def behave(handler):
        time.sleep(seconds)
        handler.close_connection = True

    return behave


def reset(handler):
    """Close with a TCP reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.wfile.close = lambda: None
    handler.connection.close()
    handler.close_connection = True


def cut_body(handler):
    """Promise more bytes than are sent."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(json.dumps(completion(CODE)).encode()[:60])
    handler.close_connection = True


def not_json(handler):
    handler.answer(200, b'{"id": "chatcmpl-1", "choices": [{"mess')


GOOD = says(CODE)
EMPTY = says("")
NULL = says(None)
CUT_OFF = says("```python\nclass ModelNew(nn.Module):\n    def forward(self", finish="length")
PROSE = says("I would fuse the two kernels.")
TWO_BLOCKS = says(f"{CODE}\nor\n{CODE}")
WRONG_JSON = says('{"bottleneck": "memory", "method": ')
THINKS = says(
    CODE,
    usage={
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 40},
    },
)


class ChatServer(ThreadingHTTPServer):
    """`with ChatServer(first, second) as server`: each request takes the next behaviour; the last one repeats."""

    daemon_threads = True

    def __init__(self, *behaviours: Behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = list(behaviours) or [GOOD]
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        # The default poll of 0.5 s would be the longest part of most tests.
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def next_behaviour(self) -> Behaviour:
        return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    def handle_error(self, request, client_address):
        """A reset connection is what was ordered; it is not reported."""

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()
