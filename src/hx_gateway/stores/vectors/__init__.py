"""Vector stores: Qdrant's engine in a process of its own, a Qdrant server, and Postgres with pgvector."""
