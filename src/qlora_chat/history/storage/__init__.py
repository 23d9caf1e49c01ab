"""SQLite files and PostgreSQL databases: opening, schema, migrations, encryption at rest."""
