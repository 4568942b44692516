"""The tables of the labeling desk, in SQLite or any other database that SQLAlchemy opens.

    tasks ──< assignments >── labelers

An assignment is one task given to one labeler, at most once. Its draft is what the labeler is typing, its label is what
the labeler has submitted. All texts are inside JSON columns: PostgreSQL's text columns refuse the character NUL.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from instructjax.errors import InputError

WAIT_SECONDS = 60  # for a connection, or for another process that writes to SQLite

_metadata = sa.MetaData()

TASKS = sa.Table(
    "tasks",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("group", sa.String(16), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("copies", sa.Integer),  # the number of labelers that are wanted; NULL for all
    sa.Column("taken", sa.Integer, nullable=False, default=0),  # the number of assignments that are open or done
    sa.Column("wanted", sa.Boolean, nullable=False, default=True),  # whether `taken` is below `copies`
    sa.UniqueConstraint("digest", "kind", "group"),
    sa.Index("tasks_queue", "group", "wanted", "id"),
)

LABELERS = sa.Table(
    "labelers",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("group", sa.String(16), nullable=False),
    sa.Column("key", sa.String(32), nullable=False),  # part of the invitation; a new one revokes the old link
    sa.Column("admitted", sa.Boolean, nullable=False),  # to tasks other than screening
    sa.Column("active", sa.Boolean, nullable=False, default=True),
)

ASSIGNMENTS = sa.Table(
    "assignments",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("task", sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("labeler", sa.ForeignKey("labelers.id"), nullable=False),
    sa.Column("order", sa.JSON, nullable=False),  # the indexes of the answers, as they are shown
    sa.Column("status", sa.String(8), nullable=False),  # open, done or skipped
    sa.Column("draft", sa.JSON(none_as_null=True)),
    sa.Column("label", sa.JSON(none_as_null=True)),
    sa.Column("score", sa.Integer),  # of a screening demonstration, by an administrator, 1 to 7
    sa.UniqueConstraint("labeler", "task"),
    sa.Index("assignments_task", "task"),
)


def connect(url: str, where: str = "--database") -> sa.Engine:
    """Opens a database, and creates the tables that are missing.

    Args:
      url: such as "sqlite:////home/me/labels.sqlite" or "postgresql+psycopg://user@host/name".
      where: the flag that names it, for errors.

    Raises:
      InputError: the URL is not valid, its driver is missing, or the database cannot be opened.
    """
    try:
        parsed = sa.make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite and parsed.database in (None, "", ":memory:"):
            raise InputError(f"{where}: expected a database in a file, found one in memory")
        # SQLite has one writer at a time, and who waits for its lock may wait for ever. A single connection is given to
        # the requests in turn.
        sizes = {"pool_size": 1, "max_overflow": 0} if is_sqlite else {"pool_size": 16, "max_overflow": 48}
        engine = sa.create_engine(parsed, pool_timeout=WAIT_SECONDS, **sizes)
        if is_sqlite:
            sa.event.listen(engine, "connect", _configure_sqlite)
            sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("BEGIN IMMEDIATE"))
        _metadata.create_all(engine)
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        found = str(error).strip().partition("\n")[0]
        raise InputError(f"{where}: expected the URL of a database, found {found:.200}") from None
    return engine


def _configure_sqlite(connection: Any, _: Any) -> None:
    """Lets `begin` start transactions as writers: a reader that becomes one fails if another has written meanwhile."""
    connection.isolation_level = None
    for pragma in (f"busy_timeout={1000 * WAIT_SECONDS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
