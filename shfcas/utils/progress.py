"""Progress bars, on stderr and only on a terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from shfcas.utils import distributed


def progress(items: Iterable[Any] | None = None, desc: str = "", total: int | None = None) -> Any:
    """Returns a tqdm bar that is silent if stderr is not a terminal."""
    return tqdm(items, desc=desc, total=total, disable=not (sys.stderr.isatty() and distributed.is_main()), leave=False)


def trainer_progress(desc: str) -> Any:
    """Returns a transformers callback that shows the steps of a training stage."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = progress(desc=desc, total=state.max_steps)
            self.bar.update(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Bar()
