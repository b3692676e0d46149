"""Upload of a result to the Hugging Face Hub, with a card; private unless asked otherwise."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from shfcas.utils import distributed
from shfcas.utils.config import Options, option, unexpected
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class HubOptions(Options):
    """Where a command uploads its result to."""

    push_to_hub: str | None = option(
        None, "repository of the Hugging Face Hub to upload the result to, as owner/name (none: upload nothing)"
    )
    hub_public: bool = option(False, "push_to_hub: a new repository is public; one that exists stays as it is")

    def check_hub(self) -> None:
        """Checks, before any work, that an upload can be tried.

        Raises:
            UsageError: the name is not of the form owner/name.
            UserError: the Hub is switched off, or there is no token for it.
        """
        if self.push_to_hub is None:
            return
        if not REPOSITORY.fullmatch(self.push_to_hub):
            raise unexpected("push_to_hub", "owner/name", self.push_to_hub)
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise UserError("push_to_hub: expected access to the Hub, but HF_HUB_OFFLINE is set; unset it")
        if not get_token():
            raise UserError("push_to_hub: expected a token for the Hub, got none; run hf auth login, or set HF_TOKEN")

    def push(self, card: str, result: Path, *, kind: str = "model") -> str | None:
        """Uploads a result, see `push`; does nothing without `push_to_hub`, and in all processes but the first."""
        if self.push_to_hub is None or not distributed.is_main():
            return None
        return push(self.push_to_hub, card, result, kind=kind, public=self.hub_public)


def push(repository: str, card: str, result: Path, *, kind: str = "model", public: bool = False) -> str:
    """Uploads a file, or all files of a folder, and a card, in one commit.

    Args:
        repository: owner/name; made if it does not exist.
        card: text of its README.md, with metadata.
        result: the folder of a model, or a file of a data set. Hidden files are left out.
        kind: model or dataset.
        public: visibility of a new repository.

    Returns:
        The repository's address.

    Raises:
        UserError: the Hub refused something or was not reachable; the message says where the result is.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    found = [result] if result.is_file() else [path for path in sorted(result.rglob("*")) if path.is_file()]
    root = result.parent if result.is_file() else result
    names = {path.relative_to(root).as_posix(): path for path in found}
    kept = {name: path for name, path in names.items() if name != CARD and not re.search(r"(^|/)\.", name)}
    files = [CommitOperationAdd(name, path) for name, path in kept.items()]
    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        api.create_commit(
            repository,
            [CommitOperationAdd(CARD, card.encode()), *files],
            commit_message="Upload by shfcas",
            repo_type=kind,
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        remedy = f"; upload it with hf upload {repository} {result}" if kind == "model" else ""
        raise UserError(f"{repository}: the upload failed ({problem}); the result is complete{remedy}") from error
    logger.info("uploaded to %s", address)
    return str(address)
