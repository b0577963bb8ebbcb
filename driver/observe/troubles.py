"""Keeps what is wrong with a volume at present, for the log, `status` and kubelet. There is one sentence for each kind of trouble."""

import logging

from driver.observe.logs import VolumeLog


class Troubles:
    """Keeps the troubles of one volume. Warnings about its mount options are kept elsewhere (VolumePolicy.warnings)."""

    __slots__ = ("_by_kind", "_log")  # each volume has one

    def __init__(self, log: VolumeLog) -> None:
        self._log = log
        self._by_kind: dict[str, str] | None = None

    @property
    def texts(self) -> list[str]:
        """Return the sentences of all present troubles."""
        return list(self._by_kind.values()) if self._by_kind else []

    def has(self, kind: str) -> bool:
        """Return whether there is a trouble of this kind."""
        return self._by_kind is not None and kind in self._by_kind

    def begin(self, kind: str, text: str, level: int = logging.ERROR) -> None:
        """Note a trouble. It replaces a former one of the same kind.

        It is logged only if it is new or its text has changed, because kubelet's periodic calls find it again and again.
        """
        if self._by_kind is None:
            self._by_kind = {}
        if self._by_kind.get(kind) != text:
            self._log.trouble(level, text)
        self._by_kind[kind] = text

    def end(self, *kinds: str) -> None:
        """Remove the troubles of these kinds, because they are over."""
        if self._by_kind:
            for kind in kinds:
                self._by_kind.pop(kind, None)
