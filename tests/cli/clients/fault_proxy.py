"""A proxy that passes on what it gets, except for the answers that a test wants to go wrong."""

import http.client
import http.server
import json
import threading
import time
import urllib.parse

PASSED_ON = ("accept", "content-type", "authorization", "if-none-match")


class FaultProxy(http.server.ThreadingHTTPServer):
    """Serves on a free port. `faults` are taken in turn by chat completions: each is called with the handler."""

    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults = []
        # Bodies and headers of chat completions.
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A browser that goes away is no error."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.pass_on(b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/chat/completions":
            self.server.asked.append((json.loads(body), self.headers))
            if self.server.faults:
                self.server.faults.pop(0)(self)
                return
        self.pass_on(body)

    def pass_on(self, body):
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        upstream.request(self.command, self.path, body or None, headers)
        response = upstream.getresponse()
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection", "content-length")]
        self.begin(response.status, headers)
        try:
            while piece := response.read1(65536):
                self.send(piece)
        finally:
            upstream.close()

    def begin(self, status, headers):
        """The response's head; its body ends with the connection."""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def send(self, piece):
        self.wfile.write(piece)
        self.wfile.flush()


def refusal(status, message, code=None, retry_after=None):
    """A fault: an error in OpenAI's shape."""

    def answer(handler):
        headers = [("content-type", "application/json")]
        if retry_after is not None:
            headers.append(("retry-after", str(retry_after)))
        handler.begin(status, headers)
        handler.send(json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode())

    return answer


def stream(pieces, ends=True):
    """A fault: these texts instead of a model's, and maybe no end."""

    def answer(handler):
        handler.begin(200, [("content-type", "text/event-stream")])
        for piece in pieces:
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            handler.send(f"data: {json.dumps(chunk)}\n\n".encode())
            time.sleep(0.01)
        if ends:
            chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "timings": {"predicted_per_second": 42.5}}
            usage = {"prompt_tokens": 120, "completion_tokens": 64, "prompt_tokens_details": {"cached_tokens": 96}}
            handler.send(f"data: {json.dumps(chunk)}\n\n".encode())
            handler.send(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())

    return answer
