#!/bin/sh
# The role and the database that page processes use. The image of PostgreSQL runs this once, when its volume is empty.
# The role owns its own database and nothing else; the server's superuser is for administration alone.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password PAGE_DATABASE_PASSWORD
CREATE ROLE qlora LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
CREATE DATABASE qlora OWNER qlora;
REVOKE ALL ON DATABASE qlora FROM PUBLIC;
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
SQL
