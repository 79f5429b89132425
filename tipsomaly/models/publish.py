"""From this machine to the Hub."""

from collections.abc import Sequence
from pathlib import Path

from tipsomaly.errors import FetchError, one_line


def find_token() -> str:
    """The user's Hub token; FetchError, with the way to get one, where there is none."""
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise FetchError(
        "no Hub token: make one with write access at https://huggingface.co/settings/tokens, then run `hf auth login` "
        "or set HF_TOKEN"
    )


def upload(
    folder: Path,
    repository: str,
    files: Sequence[str] | None = None,
    *,
    kind: str = "model",
    private: bool | None = None,
    whole: bool = False,
    token: str | None = None,
) -> str:
    """Publish `files` of a folder (all without it) as a Hub repository, made if it is not there; returns its address.
    With `whole` the repository has these files afterwards and no other.

    Raises FetchError, in one line, without a token or when the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token or find_token())
    try:
        sdk = "gradio" if kind == "space" else None
        url = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type=kind,
            allow_patterns=None if files is None else list(files),
            delete_patterns="*" if whole else None,
        )
    except Exception as error:  # as in _snapshot
        raise FetchError(f"{repository}: the upload failed: {one_line(error)}") from None
    return str(url)
