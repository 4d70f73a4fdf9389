"""A place in an object store, such as ``s3://bucket/sweeps``, by its URI: whole objects are read, written and removed.

pyarrow opens S3, Google Cloud Storage, Azure and HDFS; fsspec whatever else is installed. pyarrow is imported where an
object is touched. Keys come from the environment, as every tool of the store's maker takes them, and never from a URI.
"""

import errno
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from analysis.errors import ConfigError, FolderError, masked

THREADS = 16  # requests at a time
_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 3.0, 8.0, 2
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_READ_ONLY = ("http", "https", "ftp", "data")
_SECRETS = re.compile(r"key|secret|token|password|signature|^sas|^sig$", re.IGNORECASE)
_KEYS = (
    "Keys belong into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE,"
    " GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_…) or into a role of the machine"
)
_FAULTS = {  # what stores and their libraries say → what it means
    r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|ContainerNotFound": "there is no bucket of that name. Make it,"
    " or name another one",
    r"ACCESS_DENIED|AccessDenied|Forbidden|HTTP status 403|AuthorizationFailure": "access is denied. Does this machine"
    f" have keys that may list, read and write there? {_KEYS}",
    r"INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|UNRECOGNIZED_CLIENT|HTTP status 401|[Cc]redentials|OAuth2"
    r"|MISSING_AUTHENTICATION": f"there are no keys for it, or the store does not take them. {_KEYS}",
    r"NETWORK_CONNECTION|curlCode|[Tt]imed? ?out|[Cc]ould not (resolve|connect)|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|HTTP status 5\d\d"
    r"|[Cc]onnection": "the store does not answer. Look at the network, and at endpoint_override in the URI or"
    " AWS_ENDPOINT_URL where it is not the maker's own",
}


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it.

    Attributes:
        size: bytes.
        modified: seconds since 1970 by the store's clock; 0 where it does not tell.
    """

    size: int
    modified: float


def is_uri(value: object) -> bool:
    """Whether a sweep folder is given as the URI of a bucket, rather than as a path."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(value))
    return scheme is not None and scheme[1].lower() != "file"


def is_name(name: str) -> bool:
    """Whether an object's name is that of a file below a folder, and of no hidden one."""
    return "\0" not in name and all(part and not part.startswith(".") for part in name.split("/"))


def joined(folder: str, name: str) -> str:
    """The place of a sweep of this name: a path or a URI, as the folder of sweeps is.

    Args:
        folder: ``sweep.dir``.
        name: of the sweep.
    """
    return Bucket(folder).below(name).uri if is_uri(folder) else f"{folder}/{name}"


class Bucket:
    """A prefix in a bucket.

    Args:
        uri: such as ``s3://bucket/sweeps/NAME?endpoint_override=127.0.0.1:9000&scheme=http``.

    Raises:
        ConfigError: for one that cannot be opened here, or holds a key.
    """

    def __init__(self, uri: str):
        _refuse_keys(uri)
        address, self._mark, self._query = uri.partition("?")
        self.scheme, _, self._path = address.rstrip("/").partition("://")
        if not self._path.strip("/"):
            raise ConfigError(f"{uri}: expected a bucket, such as {self.scheme}://BUCKET/sweeps")

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self._path}{self._mark}{self._query}"

    @property
    def name(self) -> str:
        """The last part of its path: of a sweep folder, the sweep's name."""
        return self._path.rsplit("/", 1)[-1]

    def below(self, name: str) -> "Bucket":
        """The place of this name in it."""
        return Bucket(f"{self.scheme}://{self._path}/{name}{self._mark}{self._query}")

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such object, and OSError as a disk that is broken does."""
        try:
            system, base = _opened(self.uri, _endpoint())
            with system.open_input_stream(f"{base}/{name}") as file:
                return bytes(file.read())
        except Exception as error:
            raise self._fault(error, f"reading {name}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write an object whole. Raises OSError as a disk that is broken does."""
        try:
            system, base = _opened(self.uri, _endpoint())
            with system.open_output_stream(f"{base}/{name}") as file:
                file.write(content)
        except Exception as error:
            raise self._fault(error, f"writing {name}") from None

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are none the less removed."""

        def one(name: str) -> None:
            try:
                system, base = _opened(self.uri, _endpoint())
                system.delete_file(f"{base}/{name}")
            except FileNotFoundError:
                return
            except Exception as error:
                raise self._fault(error, f"removing {name}") from None

        in_parallel(one, names)

    def remove_folder(self, name: str) -> None:
        """Remove all objects below a name; nothing happens where there are none."""
        try:
            system, base = _opened(self.uri, _endpoint())
            system.delete_dir(f"{base}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._fault(error, f"removing {name}") from None

    def listing(self, prefix: str = "") -> dict[str, Entry]:
        """Names of all objects below a prefix, which is a folder's; names are of this place, not of the prefix.

        Left out are those that would be no files below a folder (``a/../b``), and hidden ones: these are a copy's own.
        """
        try:
            from pyarrow.fs import FileSelector, FileType

            system, base = _opened(self.uri, _endpoint())
            place = f"{base}/{prefix}".rstrip("/")
            infos = system.get_file_info(FileSelector(place, recursive=True))
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._fault(error, "listing it") from None
        files = [(info.path[len(base) + 1 :], info) for info in infos if info.type is FileType.File]
        return {name: Entry(it.size, (it.mtime_ns or 0) / 1e9) for name, it in files if is_name(name)}

    def entry(self, name: str) -> Entry | None:
        """One object as a listing shows it; None where it is not there."""
        try:
            from pyarrow.fs import FileType

            system, base = _opened(self.uri, _endpoint())
            info = system.get_file_info(f"{base}/{name}")
        except Exception as error:
            raise self._fault(error, f"looking at {name}") from None
        return Entry(info.size, (info.mtime_ns or 0) / 1e9) if info.type is FileType.File else None

    def now(self, nonce: str) -> float | None:
        """The store's clock, from an object written for it; None where nothing may be written.

        Args:
            nonce: in the name of the object.
        """
        name = f".clock-{nonce}"
        try:
            self.write(name, b"")
            entry = self.entry(name)
            self.remove([name])
        except OSError:
            return None
        return entry.modified if entry else None

    def _fault(self, error: Exception, doing: str) -> OSError:
        """A store's error as a disk's; what is wrong, in a sentence, is its ``strerror``."""
        if isinstance(error, ConfigError):
            raise error
        if isinstance(error, FileNotFoundError):
            return error
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        meaning = next((what for pattern, what in _FAULTS.items() if re.search(pattern, said)), "")
        number = errno.EACCES if "access is denied" in meaning else errno.EIO
        return OSError(number, f"{doing}: {meaning + f' ({said[:300]})' if meaning else said[:500]}", self.uri)


def check_writable(bucket: Bucket, nonce: str) -> None:
    """Write an object, read it, list and remove it.

    Args:
        bucket: to be written to.
        nonce: in the object's name and its content.

    Raises:
        FolderError: where that does not work: what is wrong, and what to do.
    """
    name = f".probe-{nonce}"
    try:
        bucket.write(name, nonce.encode())
        if bucket.read(name).decode() != nonce or bucket.entry(name) is None:
            raise OSError(errno.EIO, "what is written there is not what is read", bucket.uri)
        bucket.remove([name])
    except OSError as error:
        raise explained(bucket, error) from None


def explained(bucket: Bucket, error: OSError) -> FolderError:
    """An error of a bucket for the user, in a sentence."""
    return FolderError(f"{bucket.uri}: {error.strerror or error}. It was given as a sweep folder (sweep.dir, or RUN).")


def in_parallel(work: Any, names: Iterable[str]) -> list[Any]:
    """Call a function for each name, several at a time. Raises the first error, once all are done."""
    todo = list(names)
    if len(todo) < 2:
        return [work(name) for name in todo]
    with ThreadPoolExecutor(min(THREADS, len(todo))) as pool:
        return list(pool.map(work, todo))


def _refuse_keys(uri: str) -> None:
    """Raises ConfigError, which does not repeat it, for a URI with a key in it: a config is written to many places."""
    parts = urlsplit(uri)
    user = parts.netloc.rpartition("@")[0]
    own = parts.scheme in ("abfs", "abfss") and ":" not in user  # container@account
    in_query = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRETS.search(name)]
    if (user and not own) or in_query:
        raise ConfigError(
            f"{masked(uri)}: there is a key or a password in this URI. It would end in files, logs and trackers."
            f" {_KEYS}; the URI names the place alone."
        )


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@cache  # a connection for each bucket and process
def _opened(uri: str, endpoint: str) -> tuple[Any, str]:
    """pyarrow's file system for a URI, and the path in it; ``endpoint``: of S3, where the environment names one."""
    from pyarrow import fs

    address, _, query = uri.partition("?")
    scheme, _, path = address.partition("://")
    scheme = scheme.lower()
    if scheme == "s3":
        return _s3(uri, endpoint, dict(parse_qsl(query))), path
    if scheme in _PYARROW:
        given = (
            query
            if scheme not in ("gs", "gcs") or "retry_limit_seconds" in query
            else f"{query}&retry_limit_seconds=10"
        )
        system, place = fs.FileSystem.from_uri(f"{address}?{given.strip('&')}" if given.strip("&") else address)
        return system, place.rstrip("/")
    if scheme in _READ_ONLY:
        raise ConfigError(f"{uri}: {scheme}:// cannot be written. Expected a bucket, such as s3://BUCKET/sweeps")
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, place = url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), place.rstrip("/")
    except ValueError:
        known = ", ".join(f"{name}://" for name in _PYARROW[:6])
        raise ConfigError(
            f"{uri}: '{scheme}' is not a scheme that pyarrow or fsspec know. Expected {known} or one of fsspec's."
        ) from None
    except ImportError as error:
        raise ConfigError(f"{uri}: {error}. Install what fsspec needs for {scheme}://.") from None


def _s3(uri: str, endpoint: str, options: dict[str, str]) -> Any:
    """S3 with timeouts and retries that end within seconds: pyarrow's own take minutes."""
    from pyarrow import fs

    if unknown := [name for name in options if name not in _S3_OPTIONS]:
        raise ConfigError(
            f"{uri}: '{unknown[0]}' is not an option of an s3:// URI. There are: {', '.join(_S3_OPTIONS)}."
        )
    scheme, separator, host = endpoint.partition("://")
    own = {"scheme": scheme, "endpoint_override": host.rstrip("/")} if separator else {}
    given = {**own, **options}
    region = given.pop("region", None) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and not given.get("endpoint_override"):
        name = urlsplit(uri).netloc
        try:
            region = fs.resolve_s3_region(name)
        except OSError:
            region = None  # what is wrong shows at the first request
    return fs.S3FileSystem(
        region=region,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        background_writes=False,
        allow_delayed_open=True,  # a small object is one request
        **given,
    )
