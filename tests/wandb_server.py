"""A W&B server on the loopback address: as much of its HTTP and GraphQL as the client needs to log runs online.

It keeps what a real one would show: a run's config, history by step, summary and state, uploaded files, artifacts with
their aliases, saved views. ``trouble`` makes it fail as servers do; ``die`` and ``come_back`` are a server that is gone
for a while, and has its state and its address when it is there again.
"""

import base64
import contextlib
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "me"


@dataclass
class ServedRun:
    """One run as W&B's page would show it."""

    name: str
    project: str
    display_name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # line of the history file → point
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    inserted: int = 0  # how often it was begun: 1, and once more for each time it was resumed

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[line] for line in sorted(self.lines)]

    def series(self, metric: str) -> list[tuple[int, float]]:
        return [(point["step"], point[metric]) for point in self.history if metric in point]

    @property
    def plain_config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


@dataclass
class ServedArtifact:
    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    run: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """``with WandbServer() as server``: serves at ``server.url`` until the block ends.

    Args:
        port: to serve at; 0: any that is free.

    Attributes:
        runs: by name (W&B's word for the run id).
        artifacts: in the order they were made.
        views: saved workspaces and reports.
        trouble: "" (well), a status such as "500" or "401", "hang" (accepts, and answers after ``hang_seconds``) or
            "drop" (closes connections).
        refused: requests that met with trouble.
        asked: GraphQL operations, in the order in which they came.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: list[ServedArtifact] = []
        self.views: list[dict[str, Any]] = []
        self.trouble = ""
        self.hang_seconds = 30.0
        self.refused = 0
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    def __enter__(self) -> "WandbServer":
        self.come_back()
        return self

    def __exit__(self, *_: Any) -> None:
        self.die()

    def come_back(self) -> None:
        """Serve, at the address of before; nothing of what was kept is lost."""
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.over.clear()
        self._http = _Http(("127.0.0.1", self.port), handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is no news
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def die(self) -> None:
        """Be gone: connections that are open end too, and new ones are refused."""
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._http.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def latest(self, type_: str) -> list[ServedArtifact]:
        return [artifact for artifact in self.artifacts if artifact.type == type_]

    # --- GraphQL

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.asked.append(operation)
            method = getattr(self, f"_on_{operation}", None)
            if method is not None:
                result: dict[str, Any] = method(variables)
                return result
            if "viewer" in query:
                return self._on_Viewer(variables)
            return {}

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802  # GraphQL's own names
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {
            "viewer": {
                "id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False,
                "apiKeys": {"edges": []}, "teams": teams,
            }
        }  # fmt: skip

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        model: dict[str, Any] = {"id": "project", "name": variables["project"], "bucket": None}
        model["entity"] = {"id": "entity", "name": ENTITY}
        if run is not None:
            tail = [json.dumps(point) for point in run.history[-1:]]
            model["bucket"] = {
                "id": f"id-{run.name}",
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.display_name,
                "logLineCount": 0,
                "historyLineCount": len(run.lines),
                "eventsLineCount": 0,
                "historyTail": json.dumps(tail),
                "eventsTail": "[]",
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": "",
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = variables.get("name") or str(variables.get("id", "")).removeprefix("id-")
        fresh = name not in self.runs
        run = self.runs.setdefault(name, ServedRun(name, variables.get("project") or "uncategorized"))
        run.inserted += variables.get("displayName") is not None and variables.get("config") is not None and fresh
        run.display_name = variables.get("displayName") or run.display_name
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.tags = variables.get("tags") or run.tags
        run.config |= json.loads(variables.get("config") or "{}")
        project = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": ENTITY}}
        bucket = {
            "id": f"id-{name}", "name": name, "displayName": run.display_name, "description": "",
            "config": json.dumps(run.config), "sweepName": None, "project": project, "historyLineCount": len(run.lines),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": fresh}}

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{run}/{_word(name)}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": f"id-{run}", "uploadHeaders": [], "files": files}}

    def _on_MarkRunFilesUploaded(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"markRunFilesUploaded": {"success": True}}

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _on_ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        given = variables["input"]
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        metadata = json.loads(given.get("metadata") or "{}")
        name = (given.get("artifactCollectionNames") or [given.get("artifactCollectionName")])[0]
        self.artifacts.append(ServedArtifact(name, given["artifactTypeName"], aliases, metadata, given["runName"]))
        number = len(self.artifacts) - 1
        return {
            "createArtifact": {
                "artifact": {
                    "id": f"artifact-{number}",
                    "state": "PENDING",
                    "artifactSequence": {"latestArtifact": None},
                }
            }
        }

    def _on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        number = variables["artifactID"].removeprefix("artifact-")
        upload = {"id": "file", "uploadUrl": f"{self.url}/upload/manifest/{number}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": upload}}}

    def _on_UpdateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        number = variables["artifactManifestID"].removeprefix("manifest-")
        upload = {"id": "file", "uploadUrl": f"{self.url}/upload/manifest/{number}/manifest", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": upload}}}

    def _on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for given in variables["input"]["artifactFiles"]:
            number = given["artifactID"].removeprefix("artifact-")
            url = f"{self.url}/upload/artifact/{number}/{_word(given['name'])}"
            edges.append(
                {
                    "node": {
                        "storagePath": f"path/{given['name']}",
                        "uploadUrl": url,
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": given["artifactID"]},
                    }
                }
            )
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.artifacts[int(variables["artifactID"].removeprefix("artifact-"))].committed = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "digest"}}}

    # --- the public API

    def _on_GetDefaultEntity(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._on_Viewer(variables)

    def _on_Runs(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        wanted = json.loads(variables.get("filters") or "{}").get("group")
        found = [run for run in self.runs.values() if wanted in (None, run.group)]
        if not any(run.project == variables["project"] for run in self.runs.values()):
            return {"project": None}
        edges = [{"node": self._node(run), "cursor": run.name} for run in found]
        page = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": page}}

    @staticmethod
    def _node(run: ServedRun) -> dict[str, Any]:
        state = "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed"
        return {
            "projectId": "1", "id": f"id-{run.name}", "tags": run.tags, "name": run.name,
            "displayName": run.display_name, "sweepName": None, "state": state, "group": run.group,
            "jobType": run.job_type, "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00", "description": "", "notes": "", "historyLineCount": len(run.lines),
            "user": {"name": ENTITY, "username": ENTITY}, "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
        }  # fmt: skip

    def _on_RunFullHistory(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        history = [json.dumps(point) for point in self.runs[variables["name"]].history]
        return {"project": {"run": {"history": history}}}

    def _on_ProjectInternalId(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        known = any(run.project == variables["projectName"] for run in self.runs.values())
        return {"project": {"id": "project", "internalId": "1"} if known else None}

    def _on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        names = dict.fromkeys(run.project for run in self.runs.values())
        nodes = [
            {"id": "1", "name": name, "entityName": ENTITY, "createdAt": "", "isBenchmark": False, "user": None}
            for name in names
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": page}}

    def _on_UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        known = next((view for view in self.views if view["id"] == variables.get("id")), None)
        view = {"id": variables.get("id") or f"view-{len(self.views)}", "name": variables["name"]}
        view |= {"displayName": variables["displayName"], "type": variables["type"]}
        view |= {
            "description": variables.get("description") or "",
            "spec": variables["spec"],
            "updatedAt": "2026-01-01T00:00:00",
        }
        view |= {"project": {"id": "1", "name": variables["projectName"], "entityName": variables["entityName"]}}
        if known is None:
            self.views.append(view)
        else:
            known.update(view)
        return {"upsertView": {"view": view, "inserted": known is None}}

    _on_upsertView = _on_UpsertView2  # noqa: N815

    # --- what is not GraphQL

    def stream(self, run_name: str, body: dict[str, Any]) -> None:
        with self.lock:
            run = self.runs[run_name]
            for name, content in (body.get("files") or {}).items():
                lines = [json.loads(line) for line in content["content"]]
                if name == "wandb-history.jsonl":
                    for i, line in enumerate(lines):
                        run.lines[content["offset"] + i] = line
                elif name == "wandb-summary.json":
                    run.summary = lines[-1]
            if body.get("exitcode") is not None:
                run.exit_code = body["exitcode"]

    def upload(self, kind: str, owner: str, name: str, content: bytes) -> None:
        with self.lock:
            if kind == "run":
                self.runs[owner].files[_name(name)] = content
            elif kind == "artifact":
                self.artifacts[int(owner)].files[_name(name)] = content


class _Http(ThreadingHTTPServer):
    """Knows its open connections: a client keeps them, and would go on being served after the server's death."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body, state = self._body(), self.server_state
        if state.trouble:
            state.refused += 1
            if state.trouble == "hang":
                state.over.wait(state.hang_seconds)
            if state.trouble in ("hang", "drop"):
                self.close_connection = True
                return None
            return self._reply(int(state.trouble), b'{"errors": [{"message": "out of order"}]}')
        path = self.path.split("?")[0]
        result: dict[str, Any] = {}
        if path == "/graphql":
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = asked.get("operationName") or (found.group(1) if found else "")
            result = {"data": state.answer(operation, asked["query"], asked.get("variables") or {})}
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            state.stream(stream.group(1), json.loads(body))
        elif path.startswith("/upload/"):
            state.upload(*path.removeprefix("/upload/").split("/"), body)
        self._reply(200, json.dumps(result).encode())
        return None

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def _reply(self, code: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the client gave up
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b"".join(self._chunks())
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


def _word(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name(word: str) -> str:
    return base64.urlsafe_b64decode(word).decode()


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    """Whether the condition comes true within the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
