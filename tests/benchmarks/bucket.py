"""What ranking a sweep in a bucket takes: a clean process, a clean machine, an S3 server (moto's) on this one.

    PYTHONPATH=. python tests/benchmarks/bucket.py --trials 100

makes a sweep of made-up trials, puts it into the server's bucket as a driver does, and times `lorasweep rank`, with the
start of its process: from an empty copy, again with that one, and from an empty one without the digest of ended trials
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from analysis.buckets.bucket import Bucket
from analysis.buckets.local_copy import DIGEST, copy_at
from sweeps.store.bucket_lease import Lease
from sweeps.store.bucket_upload import Upload
from tests.benchmarks.synthetic import make
from tests.bucket_server import BUCKET, BucketServer

URI = f"s3://{BUCKET}/runs/made-up"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--items", type=int, default=400)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        server = BucketServer(Path(place))
        try:
            os.environ.update(server.environment)
            bucket = Bucket(URI)
            folder = make(Path(place) / "made-up", options.trials, items=options.items)
            files = [path for path in folder.root.rglob("*") if path.is_file() and not path.name.startswith(".")]
            with ThreadPoolExecutor(16) as pool:
                names = [path.relative_to(folder.root).as_posix() for path in files]
                list(pool.map(lambda name: bucket.write(name, (folder.root / name).read_bytes()), names))
            time.sleep(2.1)  # S3 counts whole seconds: the digest must be younger
            os.environ["LORASWEEP_STAGING"] = f"{place}/driver"
            copy = copy_at(URI, "staging")
            copy.fetch_to_drive()
            Upload(copy, Lease(copy))._write_digest()
            seconds = {"objects": len(names), "clean": timed(f"{place}/one"), "again": timed(f"{place}/one")}
            bucket.remove([DIGEST])
            seconds["clean, without the digest"] = timed(f"{place}/two")
            os.environ["LORASWEEP_STAGING"] = f"{place}/three"
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "sweeps.cli", "rank", str(folder.root), "--csv"], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            seconds["in a folder"] = round(time.monotonic() - began, 2)
            print(json.dumps({"trials": options.trials, **seconds}))
        finally:
            server.stop()
    return 0


def timed(staging: str) -> float:
    """Seconds that ``lorasweep rank`` takes with its copies below a folder."""
    began = time.monotonic()
    command = [sys.executable, "-m", "sweeps.cli", "rank", URI]
    subprocess.run(command, env={**os.environ, "LORASWEEP_STAGING": staging}, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
