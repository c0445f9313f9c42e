"""Progress bars, with the time left: of the episodes, and of fitting attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from sb3_prune_robust.evaluation.held_out import Watch

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}]"


@contextmanager
def bars(n_episodes: int, fitting: float) -> Iterator[Watch]:
    """
    A bar for episodes, and one for fitting if there is any; none where the output is no terminal.

    :param n_episodes: how many are to be played
    :param fitting: the sum of the budgets of the attacks to be fitted, as :func:`~.held_out.size_of`
    :return: what is to be told of progress
    """
    with tqdm(total=n_episodes, desc="episodes", unit="ep", disable=None) as episodes:
        if not fitting:
            yield Watch(episodes.update)
            return
        with tqdm(total=fitting, desc="fitting attacks", disable=None, bar_format=_FORMAT) as fits:

            def on_fit(what: str, amount: float) -> None:
                fits.set_description_str(f"fitting {what}", refresh=False)
                fits.update(amount)

            yield Watch(episodes.update, on_fit)
