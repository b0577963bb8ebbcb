"""How a service answers a call that failed."""

from typing import Any, NoReturn

import grpc
import grpc.aio

from driver.errors import VolumeError

Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: Context, error: VolumeError) -> NoReturn:
    """End the call with the gRPC status of `error` and its text."""
    await context.abort(grpc.StatusCode[error.code.name], str(error))
    raise error  # abort() has raised already
