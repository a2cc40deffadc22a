"""How every command looks, and how it ends after an error."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from shardkit.errors import PipelineError, RunInterrupted, ShardkitError
from shardkit.hints import in_a_command
from shardkit.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text without anything in it that controls the terminal."""
    click.echo(printable(text), err=err, nl=nl)


def _write_examples(command: click.Command, formatter: click.HelpFormatter) -> None:
    if command.epilog:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in command.epilog.strip().splitlines()))


class Command(click.Command):
    """A command that keeps the line breaks of its examples, and turns the library's errors into one clean message."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples as they are written."""
        _write_examples(self, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors exit with their own code."""
        from shardkit.storage.interruption import heeding_interrupts

        try:
            with in_a_command(), heeding_interrupts():
                return super().invoke(ctx)
        except ShardkitError as error:
            echo(f"Error: {error.command_text}", err=True)
            ctx.exit(error.exit_code)
        except Exception as error:
            from shardkit.storage.aws_locations import is_of_boto3, unusable

            if not is_of_boto3(error):
                raise
            echo(f"Error: {unusable('AWS', error).command_text}", err=True)
            ctx.exit(PipelineError.exit_code)
        except KeyboardInterrupt:
            echo("Interrupted.", err=True)
            ctx.exit(RunInterrupted.exit_code)


class Group(click.Group):
    """A group of such commands, listed in the order in which users need them."""

    command_class = Command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples as they are written."""
        _write_examples(self, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List them in the order in which users need them."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported if it has not been."""
        command = self.commands.get(cmd_name)
        return command.imported() if isinstance(command, Later) else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List what each command is for, without importing it."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        limit = formatter.width - 6 - max(map(len, shown))
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in shown.items()])


class Later(click.Command):
    """What `--help` has to know of a command that has not been imported: its name, and the first sentence of its help.

    ``place`` is where the command is: a module of ``cli/`` and a name in it.
    """

    def __init__(self, name: str, place: str, sentence: str) -> None:
        super().__init__(name, help=sentence)
        self._place = place

    def imported(self) -> click.Command:
        """The command itself."""
        module, _, name = self._place.partition(":")
        command: click.Command = getattr(importlib.import_module(f"shardkit.cli.{module}"), name)
        return command


def options(*wanted: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options or arguments as one decorator."""

    def add(function: Any) -> Any:
        for option in reversed(wanted):
            function = option(function)
        return function

    return add
