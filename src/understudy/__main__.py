"""`understudy`, the command."""

from __future__ import annotations

from understudy.cli.main import cli


def main() -> None:
    cli(prog_name="understudy")


if __name__ == "__main__":
    main()
