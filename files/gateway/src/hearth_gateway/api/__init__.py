"""HTTP in: parse, call the core, shape the answer. No business rule lives here."""
