"""Errors of databases, in words for the person who set the URL.

Scope: texts of PostgreSQL and of its driver to clauses, which quote no statement and no value. Knows no connection.
"""

from __future__ import annotations

import re

from qlora_chat.errors import UserError


class DatabaseError(UserError, RuntimeError):
    """A database that cannot be opened; the message is a clause that says why and what to do."""


class ForeignFile(DatabaseError):
    """A file that is not this program's, and that is left as it is."""


OTHER_TABLES = "give this program a database or a schema of its own"
_UNREACHABLE = "the database server cannot be reached: "
_SERVER_PROBLEMS = (
    ("role .* does not exist", "the server knows no such user: check the name before the @ of the URL"),
    ("role .* is not permitted to log in", "the server lets this user not log in: ALTER ROLE ... LOGIN, or name another user"),
    ("database .* does not exist", "the server has no such database: create it with createdb, or check the URL"),
    ("database .* not currently accepting", "the database accepts no connections: ALTER DATABASE ... ALLOW_CONNECTIONS true"),
    ("(peer|ident) authentication failed",
     "the server lets this user in only from a login of the same name on its machine: run the program as that user, name "
     "another user, or add a line with a password (scram-sha-256) to its pg_hba.conf"),
    ("certificate authentication failed|requires a valid client certificate",
     "the server asks for a client certificate: name one with sslcert and sslkey after the ? of the URL"),
    ("no password supplied|authentication failed",
     "the database server refuses the password: set it in QLORA_CHAT_HISTORY_PASSWORD (--history), PGPASSWORD or ~/.pgpass"),
    ("no pg_hba.conf entry.*no encryption",
     "the server accepts no unencrypted connection of this user from this address: add sslmode=require after the ? of the "
     "URL, or a line to its pg_hba.conf"),
    ("no pg_hba.conf entry", "the server accepts no connection of this user from this address: add a line to its pg_hba.conf"),
    ("pg_hba.conf rejects",
     "a line of the server's pg_hba.conf rejects this user, database or address: change that line, or connect from another "
     "address"),
    ("permission denied for database", "its user may not connect to it: let the database's owner GRANT it CONNECT"),
    ("permission denied", "its user lacks rights: let the database's owner GRANT it CREATE on the schema"),
    ("does not support ssl",
     "the server offers no encryption (SSL), which the URL's sslmode asks for: turn ssl on there, or leave sslmode out"),
    ("channel binding required",
     "the URL's channel_binding asks for an encrypted connection: add sslmode=require, or leave it out"),
    ("gssapi", "the URL's gssencmode asks for Kerberos, for which this machine has no ticket: leave it out, or get one"),
    ("root certificate file .* does not exist|root.crt",
     "the URL's sslmode needs the certificate of the server's authority: name its file with sslrootcert"),
    ("certificate verify failed|certificate .* does not match|tlsv1 alert|ssl error",
     "the server's certificate cannot be verified: check sslmode, sslrootcert and the host's name in the URL"),
    ("invalid response to ssl negotiation|received invalid response", f"{_UNREACHABLE}what answers there is no PostgreSQL"),
    ("not in hot standby mode|session is (not )?read-only|server is in hot standby",
     "the URL's target_session_attrs asks for another kind of server than this one: leave it out, or name the other server"),
    ("authentication method requirement", "the URL's require_auth refuses the server's method: leave it out"),
    ("definition of service|service file", "the URL's service is not in pg_service.conf: check its name"),
    ("invalid port number|invalid integer value .* \"port\"", "its URL has a port that is none: use 1 to 65535, usually 5432"),
    ("invalid connection option|invalid uri query parameter|invalid .* value|bad value for|unrecognized configuration",
     "its URL has an option that PostgreSQL does not know: check what follows the ?"),
    ("failed to resolve host|could not translate host name|could not parse network address",
     f"{_UNREACHABLE}there is no host of that name"),
    ("connection refused", f"{_UNREACHABLE}nothing listens on that host and port"),
    ("no such file or directory", f"{_UNREACHABLE}it has no socket on this machine, so is it running?"),
    ("network is unreachable|no route to host", f"{_UNREACHABLE}there is no way to its network from here"),
    ("timeout expired|timed out", f"{_UNREACHABLE}it did not answer in time"),
    ("starting up|shutting down", "the database server is starting or stopping: try again in a moment"),
    ("too many connections for (role|database)",
     "the server's CONNECTION LIMIT for this user or database is reached: raise it"),
    ("too many (clients|connections)|remaining connection slots",
     "the database server has no connection left: raise its max_connections"),
    ("server closed the connection|connection reset|terminating connection|broken pipe",
     f"{_UNREACHABLE}it closed the connection, so look into its log; or something else than PostgreSQL listens there"),
    ("read-only transaction", "the database is read-only, as a standby is: use the address of the primary"),
    ("no schema has been selected", "it has no schema to create tables in: CREATE SCHEMA public, or correct its search_path"),
    ("(relation|type|constraint|index) .* already exists",
     f"another program's tables there have the names of this program's: {OTHER_TABLES}"),
    ("(column|relation) .* does not exist", f"its tables are not this program's: {OTHER_TABLES}"),
    ("no equivalent in encoding|invalid byte sequence|conversion between",
     "its encoding does not hold every text: create a database with createdb --encoding=UTF8 --template=template0"),
    ("no space left|disk full", "the disk of the database server is full"),
)  # fmt: skip
"""Texts of PostgreSQL and its driver, in English, and the clause for the person who set the URL."""


def server_problem(problem: Exception) -> str | None:
    """Clause for an error of PostgreSQL: the cause and what to do; None for an error of another database."""
    cause = getattr(problem, "orig", None) or problem
    if not type(cause).__module__.startswith("psycopg"):
        return None
    reason = str(cause)
    lines = reason.lower()
    if clause := next((clause for pattern, clause in _SERVER_PROBLEMS if re.search(pattern, lines)), None):
        return clause
    if state := getattr(cause, "sqlstate", None):  # the text of an error in a statement may quote a conversation
        return f"the database server reports the error {state}: its log says more"
    if "connection failed: " in reason or "connection is bad: " in reason:
        first = reason.splitlines()[0].rpartition(" failed: ")[2].removeprefix("connection is bad: ")
        return f"{_UNREACHABLE}it says {first[:200]!r}"
    return "the connection to the database server was lost: is it running, and does its log say why?"
