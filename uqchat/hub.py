"""Bring a model from the Hugging Face Hub into the usual Hub cache: only the files it needs, resumable, cancellable.

Weights are fetched here, because the Hub's own client throws away what it has of a file when it is stopped; they end up
under the names that client uses, which then links them. Knows no device and no model class.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from uqchat.errors import ModelError
from uqchat.loading import Reporter, disk_errors, exclusive, gigabytes, sha256
from uqchat.weights import LAYOUTS, shard_names

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
CHUNK = 1 << 20
RETRIES = 5
ROOM = 200_000_000  # bytes to leave free on the disk


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `key` is the name of its content in the cache."""

    name: str
    size: int
    key: str
    is_hashed: bool  # whether `key` is the content's sha256


def download_model(
    repo_id: str, reporter: Reporter, *, token: str | None = None, with_code: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """The folder of a Hub model's newest version, and notes for the user.

    Offline (HF_HUB_OFFLINE=1, or no network) the copy in the Hub cache is used.

    Raises:
        ModelError: bad name, no such model, licence not accepted, missing files, no room, no network and no copy.
        ModelCancelledError: cancelled; what was fetched is kept, and the next try goes on from there.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ModelError(
            f"{repo_id!r} is not a model's name. Give `embedded`, a Hub id like Qwen/Qwen2.5-0.5B-Instruct, a folder"
            " or a .gguf file."
        ) from error
    if is_offline_mode():
        return _cached(repo_id, "HF_HUB_OFFLINE is set"), ()
    reporter.say("download", f"Asking the Hub for {repo_id}")
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            return _Download(repo_id, token, reporter).run(with_code), ()
    except (httpx2.TransportError, OfflineModeIsEnabled):
        folder = _cached(repo_id, "the Hub cannot be reached")
        return folder, (f"the Hub could not be reached: the copy of {repo_id} on this machine is used",)
    except HfHubHTTPError as error:
        raise explained(error, repo_id, has_token=token is not None) from error


def _cached(repo_id: str, reason: str) -> Path:
    path = try_to_load_from_cache(repo_id, "config.json")
    if not isinstance(path, str):
        raise ModelError(
            f"{repo_id} is not on this machine and {reason}. Connect to the network once to download it, or choose"
            " `embedded`, a folder or a .gguf file."
        )
    return Path(path).parent


def explained(error: HfHubHTTPError, repo_id: str, has_token: bool) -> ModelError:
    """What the Hub's refusal means for the user; never shows the token."""
    page = f"https://huggingface.co/{repo_id}"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        with_token = "the token given has no access yet" if has_token else "then give a token of your account"
        return ModelError(
            f"The licence of {repo_id} is not accepted. Open {page}, accept it, and try again; {with_token}."
        )
    if has_token and status == 401:
        return ModelError(
            "The Hub does not accept this token. Make a new one on https://huggingface.co/settings/tokens."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(f"There is no model {repo_id} on the Hub. Check the spelling; a private one needs a token.")
    return ModelError(f"The Hub answered with an error ({status}) for {repo_id}. Try again later.")


class _Download:
    """One download of one repository."""

    def __init__(self, repo_id: str, token: str | None, reporter: Reporter) -> None:
        self.repo_id, self.token, self.reporter = repo_id, token, reporter
        self.cache = Path(constants.HF_HUB_CACHE)
        self.storage = self.cache / repo_folder_name(repo_id=repo_id, repo_type="model")
        self.done = self.total = 0

    def run(self, with_code: bool) -> Path:
        """Fetch what is needed and return the folder that holds it."""
        info = HfApi(token=self.token).model_info(self.repo_id, files_metadata=True)
        self.commit = info.sha
        files = {file.name: file for file in map(_remote_file, info.siblings or [])}
        if "config.json" not in files:
            kinds = sorted({Path(name).suffix for name in files if Path(name).suffix in (".gguf", ".onnx", ".bin")})
            hint = " Download one of its .gguf files and give that file's path." if ".gguf" in kinds else ""
            raise ModelError(f"{self.repo_id} holds no model that transformers reads (no config.json).{hint}")
        needed = [file for file in files.values() if _is_small(file.name, with_code)]
        needed += [self._known(name, files) for name in self._weight_names(files)]
        large = [file for file in needed if file.is_hashed]
        self._require_room(large)
        for file in needed:
            if file.is_hashed:
                self._large(file)
            self._small(file.name)  # links it when its content is there by now
        # Last, so that the version a later offline start finds is a complete one.
        path = hf_hub_download(self.repo_id, "config.json", token=self.token, tqdm_class=_Silent)
        return Path(path).parent

    def _small(self, name: str) -> Path:
        self.reporter.say("download", f"Downloading {self.repo_id}: {name}", self.done or None, self.total or None)
        path = hf_hub_download(self.repo_id, name, revision=self.commit, token=self.token, tqdm_class=_Silent)
        return Path(path)

    def _weight_names(self, files: dict[str, RemoteFile]) -> list[str]:
        for single, index in LAYOUTS:
            if single in files:
                return [single]
            if index in files:
                return shard_names(self._small(index))
        raise ModelError(
            f"{self.repo_id} has no weights that transformers reads: neither model.safetensors nor pytorch_model.bin."
        )

    def _known(self, name: str, files: dict[str, RemoteFile]) -> RemoteFile:
        if name not in files:
            raise ModelError(f"{self.repo_id} is incomplete on the Hub: its index names {name}, which is not there.")
        return files[name]

    def _require_room(self, files: list[RemoteFile]) -> None:
        self.total = sum(file.size for file in files)
        self.done = sum(file.size for file in files if self._blob(file).exists())
        kept = sum(self._part(file).stat().st_size for file in files if self._part(file).exists())
        needed = self.total - self.done - kept
        (self.storage / "blobs").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.storage).free
        if needed and needed + ROOM > free:
            raise ModelError(
                f"Not enough disk: {self.repo_id} needs {gigabytes(needed)} more in {self.cache}, {gigabytes(free)} are"
                " free. Free some space, or choose another folder with HF_HOME."
            )

    def _blob(self, file: RemoteFile) -> Path:
        return self.storage / "blobs" / file.key

    def _part(self, file: RemoteFile) -> Path:
        return self.storage / "blobs" / f"{file.key}.uqchat.incomplete"

    def _large(self, file: RemoteFile) -> None:
        blob, part = self._blob(file), self._part(file)
        if blob.exists():
            return
        message = f"Waiting for another process that downloads {self.repo_id}"
        with exclusive(part.with_suffix(".lock"), self.reporter, "download", message):
            if blob.exists():
                self.done += file.size
                return
            is_resumed = part.exists()
            before = self.done
            self._fetch(file, part, before)
            if is_resumed and file.is_hashed and sha256(part) != file.key:
                part.unlink()
                raise ModelError(f"{file.name} of {self.repo_id} arrived damaged. Try again: it is downloaded anew.")
            part.replace(blob)
            self.done = before + file.size

    def _fetch(self, file: RemoteFile, part: Path, before: int) -> None:
        """Fetch what is missing of `part`; a broken connection is taken up again a few times."""

        def say() -> None:
            self.done = before + part.stat().st_size
            self.reporter.say("download", f"Downloading {self.repo_id}: {file.name}", self.done, self.total)

        url = hf_hub_url(self.repo_id, file.name, revision=self.commit)
        headers = build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"}
        failures = 0
        part.touch()
        while part.stat().st_size < file.size:
            had = part.stat().st_size
            try:
                append(url, headers, part, say)
            except httpx2.TransportError:
                failures = 0 if part.stat().st_size > had else failures + 1
                if failures > RETRIES:
                    raise ModelError(
                        f"The connection broke while {self.repo_id} was downloaded. Try again: it goes on from there."
                    ) from None
                self.reporter.pause(failures)
        if part.stat().st_size != file.size:
            part.unlink()
            raise ModelError(f"{file.name} of {self.repo_id} arrived with a wrong size. Try again.")


def append(url: str, headers: dict[str, str], part: Path, after_chunk: Callable[[], None]) -> None:
    """Append to `part` what it lacks of the file at `url`; begins anew where the server cannot resume."""
    headers = headers | {"Range": f"bytes={part.stat().st_size}-"}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                file.flush()
                after_chunk()


def _remote_file(sibling: object) -> RemoteFile:
    if sibling.lfs is not None:
        return RemoteFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256, True)
    return RemoteFile(sibling.rfilename, sibling.size or 0, sibling.blob_id or "", False)


def _is_small(name: str, with_code: bool) -> bool:
    if "/" in name or re.search(r"\.index\.json$", name):
        return False
    return any(fnmatch(name, pattern) for pattern in SMALL_FILES + (("*.py",) if with_code else ()))


class _Silent:
    """A progress bar that shows nothing, in the form that the Hub's client expects."""

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def update(self, _count: float = 1) -> None:
        """Nothing to show."""
