"""Order fulfilment on servers: rows in PostgreSQL, and Redis for services that keep none."""
