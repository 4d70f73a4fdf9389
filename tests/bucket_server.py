"""An S3 server on the loopback address: moto's, with a journal of what was written, and trouble on request.

    python tests/bucket_server.py FOLDER

prints its address. ``FOLDER/journal.jsonl`` gets a line for each object that is written or removed, in order;
``FOLDER/trouble`` holds the HTTP status with which all requests are answered while it is there.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

SECRET = "tHiS-iS-nO-sEcReT-bUt-StAnDs-FoR-oNe"
BUCKET = "sweeps"


class BucketServer:
    """The server as a process of its own.

    Args:
        folder: for its journal; a free one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.url,
        }
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/s3/aws4_request"}
        urlopen(Request(f"{self.url}/{BUCKET}", method="PUT", headers=signed)).close()

    def journal(self) -> list[tuple[str, str]]:
        """(PUT or DELETE, name of the object) of every write, in order."""
        file = self.folder / "journal.jsonl"
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def trouble(self, status: str = "") -> None:
        """Answer all requests with this status from now on, such as ``503 Slow Down``; empty: no more."""
        file = self.folder / "trouble"
        if status:
            file.write_text(status)
        else:
            file.unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Recorded:
    """A WSGI application that notes what is written through it."""

    def __init__(self, inner: Callable[..., Iterable[bytes]], folder: Path):
        self.inner, self.folder = inner, folder

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        trouble = self.folder / "trouble"
        if trouble.exists():
            start_response(trouble.read_text(), [("Content-Length", "0")])
            return [b""]
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].split("/", 2)[-1]
        answer = self.inner(environ, start_response)
        if method in ("PUT", "DELETE"):
            with (self.folder / "journal.jsonl").open("a") as file:
                file.write(json.dumps([method, path]) + "\n")
        return answer


def main(folder: Path) -> None:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Recorded(DomainDispatcherApplication(create_backend_app), folder)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
