"""The tables as the code uses them. The statements that create them are in ``database.MIGRATIONS``;
a test compares the two, on SQLite and on PostgreSQL.

Money is a whole number of nano-dollars (1e-9 US dollars): no rounding ever adds up. Times are
milliseconds since 1970 UTC. People are e-mail addresses here and nowhere else below the API.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# The oldest version whose code can use these tables (see database.py), and the steps applied so far.
schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))
schema_steps = sa.Table("schema_steps", metadata, sa.Column("step", sa.Integer, primary_key=True, autoincrement=False))

# One row per attempt at a provider. Numbers and names only: no prompt, no answer, no address.
# `input_tokens` excludes cached ones. `person` is whom it was for, NULL for a program's own request.
#
# `state`: `intent` = the provider may have been called, the end is not known; tokens and cost are then
# the most it can cost. `settled` = the provider's own count. `estimated` = it broke off before the
# provider said its count; ours. `unknown` = the gateway died meanwhile, or this table could not hold
# the provider's numbers; the intent's stay.
# `cost_nano` NULL = nobody has told us a price. `instance` = the process that wrote the intent.
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("leg", sa.Integer, nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False, index=True),
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
    sa.Column("person", sa.Text),
    sa.Column("state", sa.Text, nullable=False, server_default="settled"),
    sa.Column("instance", sa.Text),
    sa.Column("images", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cost_nano", sa.BigInteger),
    sa.UniqueConstraint("request_id", "leg"),
)

# What a scope has used in a period, kept in step with the ledger in the same transactions: a limit
# is checked without adding up rows. `scope` is `person:<e-mail>`, `program:<token name>` or `house`,
# `period` a day `2026-11-21` or a month `2026-11` of the configured time zone. `held_*` is reserved by
# intents. `reported` has one bit for each limit event already sent (core/limits.py).
spending = sa.Table(
    "spending",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("period", sa.Text, primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("nano", sa.BigInteger, nullable=False),
    sa.Column("held_tokens", sa.BigInteger, nullable=False),
    sa.Column("held_nano", sa.BigInteger, nullable=False),
    sa.Column("reported", sa.Integer, nullable=False),
)

# What is left of ledger rows after `ledger_detail_days`. `person` is "" where the ledger has NULL.
# `cost_nano` sums the priced legs; the others are counted in `unpriced_legs`.
usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("legs", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_1h_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
    sa.Column("unpriced_legs", sa.BigInteger, nullable=False),
)

# The gateways that run on this database. One that was not seen for a while is dead, and its intents
# are charged as unknown.
instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
)

# Who may chat. `email` is normalised (core/identity.py), `state` `active` or `disabled`, `limits` the
# JSON of a config.LimitsConfig that replaces the configuration's, or NULL.
people = sa.Table(
    "people",
    metadata,
    sa.Column("email", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("alias", sa.Text),
    sa.Column("limits", sa.Text),
    sa.Column("not_before_ms", sa.BigInteger),
    sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
)

# One row. Grows with every change of `people`, so that a process sees in one look whether to read them anew.
people_version = sa.Table("people_version", metadata, sa.Column("version", sa.BigInteger, nullable=False))

# What a house makes once and keeps, such as the key of the pseudonyms.
settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
