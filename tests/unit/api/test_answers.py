"""Tests what a call that fails is answered with."""

import asyncio
from typing import Any

import grpc
import pytest

from driver.api.answers import answers
from driver.model.errors import Code, VolumeError


class Aborted(Exception):
    pass


class Context:
    """Stands in for gRPC's context: keeps the status, and raises as gRPC's does."""

    def __init__(self) -> None:
        self.status: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = (code, details)
        raise Aborted


class Service:
    def __init__(self, outcome: Exception | str) -> None:
        self.outcome = outcome

    @answers
    async def Call(self, request: str, context: Any) -> str:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return request + self.outcome


def failure(error: Exception) -> tuple[grpc.StatusCode, str]:
    context = Context()
    with pytest.raises(Aborted):
        asyncio.run(Service(error).Call("request", context))  # type: ignore[arg-type]
    assert context.status is not None
    return context.status


def test_a_call_that_succeeds_is_its_own_answer() -> None:
    context = Context()
    assert asyncio.run(Service(" and answer").Call("request", context)) == "request and answer"  # type: ignore[arg-type]
    assert context.status is None


@pytest.mark.parametrize("code", list(Code))
def test_the_status_is_the_errors_code(code: Code) -> None:
    assert failure(VolumeError(code, "what is wrong")) == (grpc.StatusCode[code.name], "what is wrong")


def test_what_the_kernel_refuses_is_internal() -> None:
    code, text = failure(OSError(28, "No space left on device", "/x"))
    assert code is grpc.StatusCode.INTERNAL
    assert "No space left on device" in text
    assert "/x" in text


def test_an_internal_error_is_internal_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert failure(ValueError("what is\nwrong")) == (grpc.StatusCode.INTERNAL, "the driver failed: ValueError('what is\\nwrong')")
    (line,) = caplog.records
    assert line.getMessage().startswith("internal error while serving Call")
    assert line.exc_info


@pytest.mark.parametrize("text", ["a\nb", "\x1b[0m", "\0", "x" * 100000])
def test_the_text_is_one_line_for_an_event(text: str) -> None:
    for error in (VolumeError(Code.INTERNAL, text), OSError(5, text)):
        text_sent = failure(error)[1]
        assert text_sent.isprintable()
        assert len(text_sent) < 1000
