"""What survives a restart: the ledger. SQLAlchemy Core on SQLite (WAL)."""
