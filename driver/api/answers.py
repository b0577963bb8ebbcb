"""Turns exceptions of gRPC methods into a status code and one line of text."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from driver.model.errors import VolumeError
from driver.observe import metrics
from driver.observe.internalerror import report_internal_error
from driver.observe.logs import log, shown

Context = grpc.aio.ServicerContext[Any, Any]

Service = TypeVar("Service")
Request = TypeVar("Request")
Response = TypeVar("Response")
Method = Callable[[Service, Request, Context], Awaitable[Response]]


def answers(method: Method[Service, Request, Response]) -> Method[Service, Request, Response]:
    """Make a gRPC method answer with a status code and one line of text if it raises. A VolumeError determines the status code."""

    @functools.wraps(method)
    async def call(self: Service, request: Request, context: Context) -> Response:
        try:
            answer = await method(self, request, context)
            metrics.called(method.__name__, "OK")
            return answer
        except VolumeError as error:
            code, text = grpc.StatusCode[error.code.name], shown(str(error))
        except OSError as error:
            code, text = grpc.StatusCode.INTERNAL, shown(f"the driver failed: {error}")
            log.error(f"{method.__name__} failed: {text}")
        except Exception as error:  # otherwise gRPC would answer UNKNOWN, and the call would not be counted
            code, text = grpc.StatusCode.INTERNAL, shown(f"the driver failed: {error!r}")
            report_internal_error(f"serving {method.__name__}")
        metrics.called(method.__name__, code.name)
        await context.abort(code, text)
        raise AssertionError("abort() raises")

    return call
