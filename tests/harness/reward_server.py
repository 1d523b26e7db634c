"""A reward server on this machine that answers, or fails, as it is told."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["RewardServer", "brightness", "picture_of"]

Request = dict[str, Any]


def picture_of(text: str) -> Tensor:
    """A picture of a request, uint8, (3, H, W)."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(text))))).permute(2, 0, 1)


def brightness(request: Request) -> Any:
    """The mean level of every picture over 255."""
    return {"scores": [float(picture_of(text).float().mean()) / 255 for text in request["images"]]}


class RewardServer:
    """Answers with what a function makes of the request; before that, with the steps of a script.

    A step is (status, body), "silent", "endless" (an answer that goes on for ever), or "redirect URL".
    """

    def __init__(self, answer: Callable[[Request], Any] = brightness) -> None:
        self.answer = answer
        self.script: list[Any] = []
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.requests.append(request)
                    owner.headers.append(dict(self.headers))
                    step = owner.script.pop(0) if owner.script else None
                owner._reply(self, request, step)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"

    def _reply(self, handler: http.server.BaseHTTPRequestHandler, request: Request, step: Any) -> None:
        if step == "silent":
            self.closing.wait(10)
            return
        if step == "endless":
            handler.send_response(200)
            handler.end_headers()
            while not self.closing.is_set():
                handler.wfile.write(b"1" * (1 << 16))
            return
        if isinstance(step, str):
            handler.send_response(302)
            handler.send_header("Location", step.removeprefix("redirect "))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        status, body = step or (200, json.dumps(self.answer(request)).encode())
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def __enter__(self) -> RewardServer:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
