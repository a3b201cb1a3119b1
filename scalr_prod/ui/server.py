# SPDX-License-Identifier: Apache-2.0
"""The page on loopback: addresses, who may ask, and its beginning and end."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import ReportError, ScalrError
from scalr_prod.interrupts import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from scalr_prod.settings import Settings
    from scalr_prod.ui.drawing import Drawing
    from scalr_prod.ui.pages import Page

__all__ = ["application", "serve"]

logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Great Expectations' pages ask other hosts for scripts and styles: here they may not.
_DOCS_POLICY: Final = (
    "sandbox allow-same-origin; default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)
_CLOSING_S: Final = 5


def serve(settings: Settings, *, port: int | None = None, started: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then close what it held.

    Args:
        settings: The project's settings.
        port: On 127.0.0.1; 0: any that is free. Default: ``[ui] port``.
        started: Called with the page's address once it can be opened.

    Raises:
        ReportError: The port is taken.
    """
    import uvicorn

    from scalr_prod.ui.drawing import Drawing

    token = secrets.token_urlsafe(24)
    with _bound(settings.ui.port if port is None else port) as bound, Drawing(settings) as drawing:
        config = uvicorn.Config(
            application(settings, drawing, token),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_S,
        )
        server = uvicorn.Server(config)
        # In a thread of its own: this one alone is told of signals, which end the command in order.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="scalr ui", daemon=True)
        thread.start()
        try:
            started(f"http://{_HOST}:{bound.getsockname()[1]}/{token}/")
            thread.join()
        except Interrupted:
            logger.debug("asked to end")
        finally:
            server.should_exit = True
            thread.join(2 * _CLOSING_S)


def application(settings: Settings, drawing: Drawing, token: str) -> Starlette:
    """The pages below ``/<token>/``, for requests that name this machine as their host."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from scalr_prod.ui.pages import Pages

    root = f"/{token}/"
    pages = Pages(settings, drawing, root)

    def answer(page: Page) -> Response:
        refresh = {"Refresh": str(page.refresh_s)} if page.refresh_s else {}
        return HTMLResponse(page.html, page.status, _HEADERS | refresh)

    def shown(look: Callable[[Request], Page]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                return answer(look(request))
            except ScalrError as error:
                return answer(pages.error(error))

        return endpoint

    def query(request: Request, name: str) -> str:
        return request.query_params.get(name, "")

    def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if request.url.path.startswith(root):
            return answer(pages.refusal(status))
        return PlainTextResponse("Open the address that scalr ui printed.\n", status, _HEADERS)

    class Docs(StaticFiles):
        """The data docs as they lie in the project's home, without the scripts that they ask other hosts for."""

        async def check_config(self) -> None:
            """Nothing to check: where no run was judged yet there is no folder, and no file is found."""

        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            response.headers.update(_HEADERS | {"Content-Security-Policy": _DOCS_POLICY})
            return response

    inside = [
        Route("/", shown(lambda request: pages.runs(still="still" in request.query_params))),
        Route("/runs/{run_id}", shown(lambda request: pages.run(request.path_params["run_id"]))),
        Route("/translate", shown(lambda request: pages.user(query(request, "run"), query(request, "user").strip()))),
        Route(
            "/translate",
            shown(lambda request: pages.draw(query(request, "run"), query(request, "user").strip(), query(request, "before"))),
            methods=["POST"],
        ),
        Mount("/data_docs", Docs(directory=settings.home / "data_docs", check_dir=False)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=inside)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"], www_redirect=False)],
        exception_handlers={HTTPException: refused, 500: refused},
    )


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise ReportError(
            f"port {port} cannot be had: {error.strerror or error}",
            where=_HOST,
            next_step="scalr ui --port 0 takes one that is free",
        ) from error
    return bound
