"""Single files of a Hugging Face Hub repository, such as a trained estimator's, in the usual Hub cache.

Whole models come through `uqchat.hub`. Knows no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from uqchat.errors import ModelError
from uqchat.hub import explained


def download_files(repo_id: str, choices: Sequence[Sequence[str]], *, token: str | None = None) -> Path:
    """The folder that holds the first group of files that the repository has, complete.

    Offline (HF_HUB_OFFLINE=1, or no network) the copy in the Hub cache is used.

    Args:
        choices: groups of file names, the best first.

    Raises:
        ModelError: bad name, no such repository, licence not accepted, no group complete, no network and no copy.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ModelError(f"{repo_id!r} is neither a folder here nor a Hub id like organisation/name.") from error
    if is_offline_mode():
        return _cached(repo_id, choices, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi(token=token).model_info(repo_id)
        names = {sibling.rfilename for sibling in info.siblings or []}
        group = next((g for g in choices if names.issuperset(g)), None)
        if group is None:
            wanted = " nor ".join(" + ".join(g) for g in choices)
            raise ModelError(f"{repo_id} holds neither {wanted}.")
        for name in group:
            hf_hub_download(repo_id, name, revision=info.sha, token=token)
        # Last and by no revision, so that a later offline start finds this version, complete.
        path = hf_hub_download(repo_id, group[0], token=token)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return _cached(repo_id, choices, "the Hub cannot be reached")
    except HfHubHTTPError as error:
        raise explained(error, repo_id, has_token=token is not None) from error
    return Path(path).parent


def _cached(repo_id: str, choices: Sequence[Sequence[str]], reason: str) -> Path:
    for group in choices:
        paths = [try_to_load_from_cache(repo_id, name) for name in group]
        if all(isinstance(path, str) for path in paths):
            return Path(paths[0]).parent
    raise ModelError(f"{repo_id} is not on this machine and {reason}. Connect to the network once to download it.")
