"""Defines the errors that calls on a volume and the driver's start raise."""

from enum import Enum


class Code(Enum):
    """Says why a call on a volume failed. The names are gRPC's status codes, used as the CSI specification assigns them."""

    INVALID_ARGUMENT = "the caller must change the request"
    NOT_FOUND = "there is no such volume"
    ALREADY_EXISTS = "the volume exists, and differs from the one in the request"
    FAILED_PRECONDITION = "something outside the request must change first"
    ABORTED = "another call for the same volume is running"
    DEADLINE_EXCEEDED = "the call took longer than its limit"
    INTERNAL = "the kernel refused what it should have done"


class VolumeError(Exception):
    """Reports that a call on a volume failed. The text is one line, which kubelet puts into an event of the pod."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class StartError(Exception):
    """Reports that the driver cannot start, or cannot go on. The text is one line for the user."""
