"""What is wrong with one volume at present, for the log, `status` and kubelet: one sentence of each kind."""

import logging

from driver.observe.logs import VolumeLog


class Troubles:
    """The troubles of a volume, besides what its own options are warned of."""

    __slots__ = ("_by_kind", "_log")  # each volume has one

    def __init__(self, log: VolumeLog) -> None:
        self._log = log
        self._by_kind: dict[str, str] | None = None

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return list(self._by_kind.values()) if self._by_kind else []

    def has(self, kind: str) -> bool:
        """Whether something of a kind is wrong."""
        return self._by_kind is not None and kind in self._by_kind

    def begin(self, kind: str, text: str, level: int = logging.ERROR) -> None:
        """Something is wrong; of each kind the last one counts.

        Logged when it is new: kubelet asks again and again, and pods mount as often as they like.
        """
        if self._by_kind is None:
            self._by_kind = {}
        if self._by_kind.get(kind) != text:
            self._log.trouble(level, text)
        self._by_kind[kind] = text

    def end(self, *kinds: str) -> None:
        """It is not any more."""
        if self._by_kind:
            for kind in kinds:
                self._by_kind.pop(kind, None)
