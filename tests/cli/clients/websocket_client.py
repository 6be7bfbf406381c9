"""Talks to a server with the websockets library, as a user's program does. Usage: websocket_client.py URL"""

import json
import sys

from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed

URL = sys.argv[1].replace("http://", "ws://", 1) + "/ws/generate"
PROMPT = "Complete the sentence: The capital of France is"


def ask(socket, **request):
    socket.send(json.dumps(request))


def answer(socket):
    pieces = []
    for message in socket:
        frame = json.loads(message)
        if "token" not in frame:
            return "".join(pieces), frame
        pieces.append(frame["token"])
    raise AssertionError("closed in the middle of an answer")


def talk():
    with connect(URL) as socket:
        for _ in range(2):
            ask(socket, id=1, prompt=PROMPT, temperature=0, max_tokens=32)
            text, end = answer(socket)
            assert "Paris" in text and end["id"] == 1 and end["finish_reason"] in ("stop", "length"), (text, end)
            assert 0 < end["usage"]["completion_tokens"] <= 32, end
        ask(socket, prompt=PROMPT, ignore_eos=True)
        assert "token" in json.loads(socket.recv())
        ask(socket, cancel=True)
        _, end = answer(socket)
        assert end["finish_reason"] == "cancelled", end
        ask(socket, prompt=PROMPT, temperature=-1)
        _, error = answer(socket)
        assert error["error"]["param"] == "temperature", error
        assert socket.ping().wait(10), "no pong"


def refuse_bytes():
    with connect(URL) as socket:
        socket.send(b"{}")
        try:
            socket.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd.code == 1003, closed
        else:
            raise AssertionError("binary messages were taken")


talk()
refuse_bytes()
print("all good")
