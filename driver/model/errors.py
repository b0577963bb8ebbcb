"""What a call on a volume fails with, and the driver's start."""

from enum import Enum


class Code(Enum):
    """Why; the names are gRPC's status codes, as the CSI specification assigns them."""

    INVALID_ARGUMENT = "the caller must change the request"
    NOT_FOUND = "there is no such volume"
    ALREADY_EXISTS = "it exists, and differs"
    FAILED_PRECONDITION = "something outside the request must change first"
    ABORTED = "another call for the same volume is at work"
    DEADLINE_EXCEEDED = "it took longer than its limit"
    INTERNAL = "the kernel refused what it should have done"


class VolumeError(Exception):
    """A call on a volume failed; the text is one line for a pod's event."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class StartError(Exception):
    """The driver cannot start, or go on; the text is one line for the user."""
