"""schemathesis over a server's OpenAPI document: fuzz_api.py URL MODEL FOLDER LEAST_CASES

No 5xx, no status and no type of content that the document doesn't list, no body of another shape than it says.

The same file is given to schemathesis as its hooks.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import zlib

SEED = "20250101"
# Where an answer's length is said.
LENGTHS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
SHORT = 12


def shorten(case, body):
    """Most answers are short; every eighth may fill the context."""
    name = LENGTHS.get(case.path)
    if case.path in ("/api/chat", "/api/generate"):
        # At the top level they are Shimmy's own shape of the request, which has no options.
        if "options" not in body and "max_tokens" not in body:
            body["options"] = {}
        body, name = body.get("options"), "num_predict"
    if name is None or not isinstance(body, dict):
        return
    asked = body.get(name, None if case.path == "/v1/messages" else SHORT + 1)
    # A wrong one stays as it is.
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > SHORT:
        body[name] = SHORT


def hooks():
    import schemathesis

    @schemathesis.hook
    def before_call(context, case, kwargs):
        body = case.body
        if not isinstance(body, dict):
            return
        spread = zlib.crc32(json.dumps(body, sort_keys=True, default=str).encode())
        # A deadline that passes is a 504, as it was asked for: it shall not pass here.
        deadline = body.get("deadline_ms")
        if isinstance(deadline, (int, float)) and 0 < deadline < 60_000:
            body["deadline_ms"] = 60_000
        # Names that nobody has end a request before anything was looked at.
        if isinstance(body.get("model"), str) and spread % 4:
            body["model"] = os.environ["FUZZ_MODEL"]
            # An empty text is an error of its own.
            for name in ("prompt", "input", "query"):
                if body.get(name) == "":
                    body[name] = "Once"
            if body.get("previous_response_id") == "":
                del body["previous_response_id"]
        if spread % 8:
            shorten(case, body)


def cases(folder):
    """The status of each case, by operation."""
    seen = collections.defaultdict(collections.Counter)
    (events,) = folder.glob("ndjson*")
    with events.open() as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished") or {}
            recorder = scenario.get("recorder") or {}
            for case, interaction in (recorder.get("interactions") or {}).items():
                case, response = recorder["cases"][case]["value"], interaction.get("response")
                # None: the server said nothing.
                status = response["status_code"] if response else None
                seen[f"{case['method']} {case['path']}"][status] += 1
    return seen


def main(url, model, folder, least):
    folder = pathlib.Path(folder).resolve()
    phases = ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "25"]
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "allow_header_conformance,unsupported_method"
    )
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color", "--seed", SEED]
    # Nothing is kept from run to run, and a failure is told as it was found: to shrink it takes minutes.
    command += ["--generation-database", "none", "--no-shrink", "--continue-on-failure", "--request-timeout", "60"]
    command += ["--report", "json,ndjson", "--report-dir", str(folder), "--checks", checks, *phases]
    # A WebSocket isn't asked for by a request and its answer.
    command += ["--exclude-path", "/ws/generate"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": __file__, "FUZZ_MODEL": model}
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    (report,) = folder.glob("json*")
    report = json.loads(report.read_text())
    seen = cases(folder)
    total = sum((statuses for statuses in seen.values()), collections.Counter())
    for operation, statuses in sorted(seen.items()):
        print(operation, dict(statuses))
    print(report["test_cases"], dict(total), report["running_time"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert report["complete"] and not report["failures"] and not report["errors"], report
    # Counted twice: as schemathesis says, and as answers that came.
    assert None not in total and total.total() >= int(least), total
    assert report["test_cases"]["generated"] >= int(least), report["test_cases"]
    tested, selected = report["operations"]["tested"], report["operations"]["selected"]
    assert tested == selected >= 43, report["operations"]
    # It got past the validation: each endpoint that computes did.
    for operation, statuses in seen.items():
        path = operation.removeprefix("POST ")
        if path in LENGTHS or path in ("/api/chat", "/api/generate", "/api/embed", "/v1/embeddings", "/v1/rerank"):
            assert statuses[200] >= 5, f"{operation}: {statuses}"
    print("all good")


if __name__ == "__main__":
    main(*sys.argv[1:])
else:
    hooks()
