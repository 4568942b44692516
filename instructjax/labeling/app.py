"""The desk as a web application."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from instructjax.labeling import admin, pages, security, web


def make_app(engine: sa.Engine, settings: web.Settings, agreement: web.Agreement) -> Starlette:
    """Makes the web application.

    Args:
      engine: the database, from `database.connect`.
      settings: how it is served.
      agreement: measures agreement for the administrator's page.
    """
    app = Starlette(
        routes=[*pages.routes(), *admin.routes(), Mount("/static", StaticFiles(directory=web.FOLDER / "static"))],
        middleware=[
            Middleware(security.Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False),
            Middleware(SessionMiddleware, secret_key=settings.secret, https_only=settings.https),
            Middleware(security.RateLimit, rate=settings.rate, burst=settings.burst),
        ],
        exception_handlers={HTTPException: web.show_error},
        max_body_size=settings.max_body,
    )
    app.state.engine, app.state.settings, app.state.agreement = engine, settings, agreement
    return app
