"""What a caller who knows no psycopg needs to catch."""

from __future__ import annotations


class DatabaseUnavailable(Exception):
    """The server cannot be reached, is full or shutting down, or the connection was lost midway.

    A statement that was under way when it was raised may have been executed.
    """
