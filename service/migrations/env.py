"""Alembic's entry: migrates over the connection that service.db holds under a lock."""

from alembic import context

from service.tables import Base

connection = context.config.attributes["connection"]
if connection.dialect.name == "sqlite":
    # Its tables are changed by making them anew, and foreign keys would keep the old one from being dropped. Detached,
    # the connection is closed at the end and not used by others.
    connection.detach()
    connection.connection.dbapi_connection.execute("PRAGMA foreign_keys=OFF")
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
