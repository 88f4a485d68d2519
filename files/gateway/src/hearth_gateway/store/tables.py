"""The tables as the code uses them. The statements that create them are in ``database.MIGRATIONS``;
a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

# One row per attempt at a provider. Numbers and names only: no prompt, no answer, no address.
# Times in milliseconds, `started_at_ms` since 1970 UTC. `input_tokens` excludes cached ones.
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("leg", sa.Integer, nullable=False),
    sa.Column("started_at_ms", sa.Integer, nullable=False, index=True),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("alias", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("input_tokens", sa.Integer, nullable=False),
    sa.Column("cache_read_tokens", sa.Integer, nullable=False),
    sa.Column("cache_write_tokens", sa.Integer, nullable=False),
    sa.Column("cache_write_1h_tokens", sa.Integer, nullable=False),
    sa.Column("output_tokens", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("duration_ms", sa.Integer, nullable=False),
    sa.Column("first_token_ms", sa.Integer),
    sa.UniqueConstraint("request_id", "leg"),
)
