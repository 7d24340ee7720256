"""A model from the Hugging Face Hub: safetensors and text files only, never a pickle.

`huggingface_hub` keeps its own cache (`HF_HOME`), token (`HF_TOKEN`) and endpoint (`HF_ENDPOINT`); we add the file
selection, the refusal of repositories that have only pickles *before* anything is downloaded, and errors with a next
step. Python files come along only under `trust_remote_code`.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from raydecode.models.errors import ModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "LICENSE*")
UNWANTED = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*", "*/*.safetensors")


def fetch(
    hub_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    endpoint: str | None = None,
) -> Path:
    """The local snapshot folder of `hub_id` at `revision` (a branch, tag or commit; None: main)."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def refuse(what: str, hint: str) -> ModelError:
        return ModelError(what, field="model", value=hub_id, hint=hint)

    http_error: type[Exception] = HfHubHTTPError.__mro__[1]  # HTTPError of whichever client the library uses
    offline = offline or constants.HF_HUB_OFFLINE
    hub = HfApi(endpoint=endpoint)
    try:
        if not offline:
            _refuse_pickles(hub_id, hub.list_repo_files(hub_id, revision=revision))
        folder = hub.snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=offline,
            allow_patterns=[*WANTED, *(["*.py"] if trust_remote_code else [])],
            ignore_patterns=list(UNWANTED),
        )
    except GatedRepoError as refusal:  # a kind of RepositoryNotFoundError: first
        raise refuse(
            f"{hub_id} is gated: its owner has to grant you access",
            f"accept the terms at {hub.endpoint}/{hub_id}, then set HF_TOKEN or run: hf auth login",
        ) from refusal
    except RepositoryNotFoundError as refusal:
        raise refuse(
            f"the Hub has no model {hub_id}, or it is private",
            "check the spelling (organisation/name); for a private model set HF_TOKEN",
        ) from refusal
    except RevisionNotFoundError as refusal:
        raise refuse(f"{hub_id} has no revision {revision!r}", "name a branch, a tag or a commit of it") from refusal
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as refusal:
        raise refuse(
            f"{hub_id} is not in the local Hub cache" + (" and offline mode is on" if offline else ""),
            "fetch it once with the network, or give the path of a local folder",
        ) from refusal
    except HfHubHTTPError as refusal:
        raise refuse(f"the Hub refused {hub_id}: {str(refusal).splitlines()[0]}", "try again later") from refusal
    except (http_error, OSError) as refusal:
        raise refuse(
            f"the Hub cannot be reached for {hub_id}: {refusal}", "use a local folder, or check HF_ENDPOINT and proxy"
        ) from refusal
    return Path(folder)


def _refuse_pickles(hub_id: str, files: list[str]) -> None:
    if any(fnmatch.fnmatch(file, "*.safetensors") for file in files):
        return
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if pickled:
        raise ModelError(
            f"{hub_id} has pickled weights only ({', '.join(pickled[:3])}): refused, because unpickling runs code",
            field="model",
            value=hub_id,
            hint="choose a revision with safetensors; the Hub often has one made by its bot under refs/pr/N",
        )
    ggufs = [file for file in files if file.endswith(".gguf")]
    raise ModelError(
        f"{hub_id} has no safetensors",
        field="model",
        value=hub_id,
        hint=f"it has GGUF files: download {ggufs[0]} and give its path" if ggufs else "choose another model",
    )
