"""Log of the server: a line of JSON for each reward, which `shfcas monitor` reads."""

import json
import threading
import time
from pathlib import Path
from typing import IO, Any

from shfcas.data.messages import completion_text, prompt_key
from shfcas.serve.reward import Answers, Rewards
from shfcas.utils.files import disk_errors, without_lone_surrogates

KEPT = ("prompt_id", "step", "logprobs", "reference_logprobs", "completion_ids")  # columns that the monitor reads


class RewardLog:
    """File to which each reward is added.

    Args:
        path: the file; lines that it has are kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        with disk_errors(str(path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, answers: Answers, found: Rewards) -> None:
        """Adds the rewards of a request."""
        now = time.time()
        lines = []
        for i, reward in enumerate(found.rewards):
            prompt, completion = answers.prompts[i], completion_text(answers.completions[i])
            row: dict[str, Any] = {"time": now, "prompt": prompt, "completion": completion, "reward": reward}
            if found.variances is not None:
                row["variance"] = found.variances[i]
            row |= {name: answers.columns[name][i] for name in KEPT if name in answers.columns}
            row.setdefault("prompt_id", prompt_key(prompt))
            lines.append(json.dumps(without_lone_surrogates(row)) + "\n")
        with self._lock, disk_errors(str(self.path)):
            self._file.write("".join(lines))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
