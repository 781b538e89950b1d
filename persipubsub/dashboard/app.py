"""The application: the page and its files, the events, and what the page asks for."""

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import pathlib
import re
import threading
from typing import Any, AsyncIterator, Callable, List, Optional, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

import persipubsub
from persipubsub import clock, errors
from persipubsub.dashboard import reading, summary
from persipubsub.dashboard.guard import Guard, Guarded, JsonResponse, refusal
from persipubsub.dashboard.watching import BusyError, Watcher

#: The longest body of a request, in bytes.
BODY_BYTES_MAX = 256 * 1024
#: How many dead letters one request names.
IDS_MAX = 10_000
#: How long a request waits for a queue, in seconds. A lost cluster takes up to 30 s.
ANSWER_S_MAX = 40.0
#: How long a change may take, in seconds.
CHANGE_S_MAX = 60
#: An event stream looks for something new at this interval, in seconds.
LOOK_S = 0.25
#: The shortest time between two events of a stream, in seconds, and the longest time without a sign of life.
PAUSE_S = 0.5
ALIVE_S = 10.0
STATIC = pathlib.Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dashboard:
    """Answers the requests of the page."""

    watchers: Sequence[Watcher]
    guard: Guard
    #: Modules that define message types.
    modules: Sequence[str]
    stopping: threading.Event

    def application(self) -> ASGIApp:
        """Return the ASGI application."""
        return Guarded(
            Starlette(routes=[
                *_static_routes(),
                Route("/api/session", self.session),
                Route("/api/events", self.events),
                Route("/api/queues/{id}/events", self.queue_events),
                Route("/api/queues/{id}/messages", self.messages),
                Route("/api/queues/{id}/dead-letters", self.dead_letters),
                Route("/api/queues/{id}/dead-letters", self.settle, methods=["POST"]),
            ]), self.guard)

    async def session(self, request: Request) -> Response:
        """Tell the page what it may do."""
        return JsonResponse({
            "version": persipubsub.__version__,
            "changes": self.guard.changes,
            "may_read": self.guard.may_read(request),
            "may_change": self.guard.changes and self.guard.has_token(request),
        })

    async def events(self, request: Request) -> Response:
        """Stream what the list of all queues shows, whenever something was read."""

        def news() -> object:
            now_s = clock.wall_us() / 1e6
            return {"now_s": now_s, "queues": [summary.brief(one, now_s) for one in self.watchers]}

        return self._stream(request, lambda: sum(one.version for one in self.watchers), news)

    async def queue_events(self, request: Request) -> Response:
        """Stream what the page of one queue shows. The first event has the samples of the last hour."""
        watcher = self._watcher(request)
        if watcher is None:
            return _no_queue()
        sent_s = 0.0

        def news() -> object:
            nonlocal sent_s
            now_s = clock.wall_us() / 1e6
            shown = summary.full(watcher, now_s, sent_s)
            if shown.get("samples"):
                sent_s = shown["samples"][-1][0]
            return {"now_s": now_s, "queue": shown}

        return self._stream(request, lambda: watcher.version, news)

    def _stream(self, request: Request, version: Callable[[], int], news: Callable[[], object]) -> Response:
        if not self.guard.may_read(request):
            return _no_token()

        async def stream() -> AsyncIterator[bytes]:
            # Each event has all that changed since the last one, so a slow reader misses events and needs no memory.
            seen, said_s = None, clock.monotonic_s()
            while not self.stopping.is_set():
                now_s = clock.monotonic_s()
                if seen != version() and (seen is None or now_s - said_s >= PAUSE_S):
                    seen, said_s = version(), now_s
                    yield b"data: " + json.dumps(news(), allow_nan=False, separators=(",", ":")).encode() + b"\n\n"
                elif now_s - said_s > ALIVE_S:
                    said_s = now_s
                    yield b": alive\n\n"
                await asyncio.sleep(LOOK_S)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def messages(self, request: Request) -> Response:
        """Return messages of a queue from an id on, or the last ones."""
        return await self._answer(request, reading.messages, _number(request, "start", -reading.COUNT_MAX),
                                  list(self.modules))

    async def dead_letters(self, request: Request) -> Response:
        """Return dead letters of a subscriber."""
        return await self._answer(request, reading.dead_letters, request.query_params.get("subscriber", ""),
                                  _number(request, "after", 0), list(self.modules))

    async def settle(self, request: Request) -> Response:
        """Requeue or discard dead letters."""
        if not self.guard.changes:
            return refusal(403, "This dashboard only shows. To change something, start it with --allow-changes.")
        if not self.guard.has_token(request):
            return _no_token()
        asked = await _json_body(request)
        if not _is_change(asked):
            return refusal(400, "The body must be JSON with action, subscriber and ids.")
        response = await self._answer(request,
                                      reading.settle,
                                      asked["action"],
                                      asked["subscriber"],
                                      asked["ids"],
                                      timeout_s=CHANGE_S_MAX)
        _LOGGER.warning("%s of dead letters of %r asked for: status %d.", asked["action"], asked["subscriber"],
                        response.status_code)
        return response

    async def _answer(self, request: Request, function: Callable[..., Any], *arguments: Any,
                      **options: int) -> Response:
        """Call a function at the queue and return its result as JSON."""
        if not self.guard.may_read(request):
            return _no_token()
        watcher = self._watcher(request)
        if watcher is None:
            return _no_queue()
        try:
            future = watcher.submit(function, *arguments, **options)
            found = await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_S_MAX + options.get("timeout_s", 0))
        except BusyError:
            return refusal(503, "Too many requests wait for this queue. Try again.")
        except (asyncio.TimeoutError, concurrent.futures.CancelledError):
            return refusal(504, "The queue did not answer in time.")
        except errors.PersipubsubError as error:
            return refusal(409, watcher.masked(str(error)))
        return JsonResponse(found)

    def _watcher(self, request: Request) -> Optional[Watcher]:
        return next((one for one in self.watchers if one.id == request.path_params["id"]), None)


def _static_routes() -> List[Route]:
    """Return a route for each file of the page; they are read once."""
    routes = []
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in TYPES:
            name = "" if path.name == "index.html" else path.relative_to(STATIC).as_posix()
            routes.append(Route(f"/{name}", _file(path)))
    return routes


def _file(path: pathlib.Path) -> "Callable[[Request], Any]":
    content, media_type = path.read_bytes(), TYPES[path.suffix]

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve


def _number(request: Request, name: str, default: int) -> int:
    """Return a number of the query; the default if it is none."""
    text = request.query_params.get(name, "")
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else default


async def _json_body(request: Request) -> Any:
    """Return the body as a value; None if it is too long or not JSON."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _is_change(asked: Any) -> bool:
    """Return whether a body asks for a change; ``ids`` must be there, null for all."""
    if not isinstance(asked, dict) or asked.get("action") not in ("requeue", "discard") or "ids" not in asked:
        return False
    ids = asked["ids"]
    return isinstance(asked.get("subscriber"), str) and (ids is None or _are_ids(ids))


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= IDS_MAX and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 < one < 2**63 for one in value)


def _no_token() -> Response:
    return refusal(401, "This needs the token that the command has printed.")


def _no_queue() -> Response:
    return refusal(404, "This dashboard does not show such a queue.")
