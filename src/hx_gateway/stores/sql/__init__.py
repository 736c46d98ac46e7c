"""The SQL store: one implementation for SQLite and Postgres."""
