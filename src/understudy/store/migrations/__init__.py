"""Numbered files that bring an old database up: `0002_what_it_does.sql`. `schema.sql` was 1."""
