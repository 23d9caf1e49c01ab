"""SQLite files and PostgreSQL databases: transactions, schema, migrations, encryption at rest, damaged files."""
