"""Events in a PostgreSQL table, one row each, every event once: an existing row is not changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, LiteralString

from pydantic import Field, SecretStr

from pointsman_billing.events import BillEvent

from .base import EventsRejected, SinkConfig, SinkContext, SinkInfo, SinkUnavailable

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Error
    from psycopg.sql import Composed

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    id text PRIMARY KEY,
    type text NOT NULL,
    tenant_id text NOT NULL,
    request_id text NOT NULL,
    attempt integer NOT NULL,
    kind text NOT NULL,
    model text NOT NULL,
    finished_at timestamptz NOT NULL,
    prompt_tokens bigint,
    completion_tokens bigint,
    cost_usd_micros bigint,
    amount_usd_micros bigint,
    event jsonb NOT NULL
)
"""
#: The columns are taken out of the document by the database itself, so that they cannot differ from it.
_INSERT: Final = """
INSERT INTO {table}
SELECT e ->> 'id', e ->> 'type', e ->> 'tenant_id', e ->> 'request_id', (e ->> 'attempt')::integer, e ->> 'kind',
       e ->> 'model', to_timestamp((e ->> 'finished_at_ms')::bigint / 1000.0), (e ->> 'prompt_tokens')::bigint,
       (e ->> 'completion_tokens')::bigint, (e ->> 'cost_usd_micros')::bigint, (e ->> 'amount_usd_micros')::bigint, e
FROM unnest(%s::jsonb[]) AS e
ON CONFLICT (id) DO NOTHING
"""
#: For one transaction: a pooler such as PgBouncer refuses options at the start, and gives the connection to others later.
_LIMIT: Final = "SELECT set_config('statement_timeout', %s, true)"


class PostgresConfig(SinkConfig):
    """The section of a ``postgres`` sink."""

    dsn: SecretStr = Field(description="Connection string, for example postgresql://user:password@host/database.")
    table: str = Field(
        default="pointsman_billing_events",
        pattern=r"^[a-z_][a-z0-9_]{0,62}(\.[a-z_][a-z0-9_]{0,62})?$",
        description="Table, optionally with its schema.",
    )
    create_table: bool = Field(default=True, description="Create the table if it is missing.")


class PostgresSink:
    """Inserts batches, each in one transaction.

    Args:
        config: Its section.
        context: Not needed.
    """

    def __init__(self, config: PostgresConfig, context: SinkContext) -> None:
        del context
        self._config = config
        self._connection: AsyncConnection | None = None

    async def open(self) -> None:
        """Connect, and make the table if need be.

        Raises:
            SinkUnavailable: not possible now.
        """
        import psycopg  # noqa: PLC0415 - an extra

        if self._connection is not None and not self._connection.closed:
            return
        connection = None
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._config.dsn.get_secret_value(),
                connect_timeout=max(2, int(self._config.timeout_s)),
                fallback_application_name="pointsman-billing",
                # A statement prepared on one connection of a pool is unknown on the others.
                prepare_threshold=None,
            )
            if self._config.create_table:
                await connection.execute(_LIMIT, (self._timeout,))
                await connection.execute(self._sql(_CREATE))
                await connection.commit()
        except psycopg.Error as err:
            if connection is not None:
                await connection.close()
            raise SinkUnavailable(f"{self._place}: {_shown(err)}") from None
        except BaseException:
            if connection is not None:
                await connection.close()
            raise
        self._connection = connection

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Insert the batch.

        Raises:
            SinkError: it was not taken.
        """
        import psycopg  # noqa: PLC0415 - an extra

        await self.open()
        assert self._connection is not None  # noqa: S101  # just opened
        try:
            await self._connection.execute(_LIMIT, (self._timeout,))
            await self._connection.execute(self._sql(_INSERT), ([event.body for event in batch],))
            await self._connection.commit()
        except (psycopg.DataError, psycopg.IntegrityError) as err:
            await self._connection.rollback()
            raise EventsRejected(_shown(err)) from None
        except psycopg.Error as err:
            await self.close()
            raise SinkUnavailable(f"{self._place}: {_shown(err)}") from None

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def _place(self) -> str:
        """The database without user and password, for messages."""
        from psycopg import ProgrammingError, conninfo  # noqa: PLC0415 - an extra

        try:
            parts = conninfo.conninfo_to_dict(self._config.dsn.get_secret_value())
        except ProgrammingError:
            return "the dsn"
        host = parts.get("host") or parts.get("hostaddr") or "the default host"
        return f"{host}{f':{port}' if (port := parts.get('port')) else ''}/{parts.get('dbname') or ''}"

    @property
    def _timeout(self) -> str:
        return f"{int(self._config.timeout_s * 1000)}ms"

    def _sql(self, text: LiteralString) -> Composed:
        from psycopg import sql  # noqa: PLC0415 - an extra

        return sql.SQL(text).format(table=sql.Identifier(*self._config.table.split(".")))


def _shown(err: Error) -> str:
    """Return the error without the server's message, which may repeat values or the connection string."""
    return f"{type(err).__name__} (SQLSTATE {err.sqlstate or 'none'})"


postgres = SinkInfo(config=PostgresConfig, factory=PostgresSink, modules=("psycopg",), extra="postgres")
