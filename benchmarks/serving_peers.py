"""The servers that Croupier's scorer is measured against, each a process of its own.

``python -m benchmarks.serving_peers noop FILE`` answers every request with the content of a file,
through the HTTP stack that Croupier uses: what is left of a scorer that does nothing.

``python -m benchmarks.serving_peers noop-lane FILE`` does so in the fast lane of that stack, as
Croupier answers: the least that a request can cost there.

``python -m benchmarks.serving_peers fastapi-vw FILE`` is the service that one would write without
Croupier: FastAPI, pydantic, and a Vowpal Wabbit model from a file, which reads requests as text. It
draws from the pmf and logs nothing.

All print the URL of their route once they listen.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import vowpal_wabbit_next as vw
from fastapi import FastAPI
from pydantic import BaseModel

from croupier.service.connections import ConnectionGuard, ConnectionLimits
from croupier.service.lane import Call
from croupier.service.protocol import guarded_protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

    from croupier.policy.oracle import TrainingRow

    Message = MutableMapping[str, Any]

__all__ = ("trained_model",)

_ARGUMENTS = ["--quiet", "--cb_explore_adf", "--squarecb", "-q", "ca"]


class CandidateModel(BaseModel):
    """An action of a request."""

    id: str
    features: dict[str, float | str] = {}


class RequestModel(BaseModel):
    """What is asked."""

    context: dict[str, float | str] = {}
    actions: list[CandidateModel]


class AnswerModel(BaseModel):
    """What is answered."""

    decision_id: str
    action: str
    propensity: float
    pmf: list[float]


def trained_model(rows: Sequence[TrainingRow]) -> bytes:
    """Vowpal Wabbit's model after it has learned from interactions, in the given order."""
    workspace: Any = vw.Workspace(_ARGUMENTS)
    parser = vw.TextFormatParser(workspace)
    for row in rows:
        lines = [_shared_line(row.context)]
        for index, action in enumerate(row.actions):
            label = f"0:{-row.reward}:{row.propensity} " if index == row.chosen else ""
            lines.append(label + _action_line(action.id, action.features))
        workspace.learn_one([parser.parse_line(line) for line in lines])
    model: bytes = workspace.serialize()
    return model


def fastapi_app(model: bytes) -> FastAPI:
    """The application that one would write, over a trained model."""
    workspace: Any = vw.Workspace(_ARGUMENTS, model_data=model)
    parser = vw.TextFormatParser(workspace)
    app = FastAPI()

    @app.post("/decide")
    async def decide(request: RequestModel) -> AnswerModel:
        lines = [_shared_line(request.context)]
        lines += [_action_line(action.id, action.features) for action in request.actions]
        given = workspace.predict_one([parser.parse_line(line) for line in lines])
        pmf = [0.0] * len(request.actions)
        for index, probability in given:
            pmf[index] = probability
        chosen = random.choices(range(len(pmf)), weights=pmf)[0]
        return AnswerModel(
            decision_id=str(uuid.uuid4()),
            action=request.actions[chosen].id,
            propensity=pmf[chosen],
            pmf=pmf,
        )

    return app


class NoopApp:
    """An ASGI application that reads a request and gives the same answer to all.

    Parameters
    ----------
    answer
        JSON.
    """

    def __init__(self, answer: bytes) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        self._start = {"type": "http.response.start", "status": 200, "headers": headers}
        self._body = {"type": "http.response.body", "body": answer}
        self.lane: ConstantLane | None = None

    async def __call__(
        self,
        scope: Message,  # noqa: ARG002 - all requests are alike
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        while (await receive()).get("more_body"):
            pass
        await send(self._start)
        await send(self._body)


class ConstantLane:
    """A fast lane that gives the same answer to all whose head it has seen before.

    Parameters
    ----------
    answer
        JSON.
    """

    def __init__(self, answer: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._response = head % len(answer) + answer
        self._calls: dict[bytes, Call] = {}

    def find(self, head: bytes) -> Call | None:
        """What a head asks for, if it is known."""
        return self._calls.get(head)

    def learn(self, head: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Get to know a head."""
        length = int(next(value for name, value in headers if name == b"content-length"))
        self._calls[head] = Call(self._start, "", length)

    def _start(self, loop: str, body: bytes, respond: Callable[[bytes], None]) -> bool:  # noqa: ARG002
        respond(self._response)
        return True


def _shared_line(context: Mapping[str, Any]) -> str:
    return f"shared |c {_words(context)}"


def _action_line(action: str, features: Mapping[str, Any]) -> str:
    return f"|a id={action} {_words(features)}"


def _words(features: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value}" if isinstance(value, str) else f"{name}:{value}"
        for name, value in features.items()
    )


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=["noop", "noop-lane", "fastapi-vw"])
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    content = given.file.read_bytes()
    if given.server.startswith("noop"):
        app = NoopApp(content)
        if given.server == "noop-lane":
            app.lane = ConstantLane(content)
        # As croupier.service.server sets it up.
        limits = ConnectionLimits(max_connections=4096, request_timeout_s=10, idle_timeout_s=75)
        guard = ConnectionGuard(limits, lambda refusal: print(refusal, file=sys.stderr))
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=guarded_protocol(guard),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
    else:
        config = uvicorn.Config(
            fastapi_app(content),
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
        )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/decide\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
