"""What commands are given appears in their help, field by field."""

import dataclasses

import pytest

from mixtura.cli import main
from mixtura.train import arguments

COMMANDS = {
    "resume": arguments.ResumeArguments,
    "eval": arguments.EvalArguments,
    "report": arguments.EvalArguments,
    "generate": arguments.GenerateArguments,
    "recipes": arguments.RecipesArguments,
    "convert": arguments.ConvertArguments,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_field(command, capsys):
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    fields = dataclasses.fields(COMMANDS[command])
    options = [field.name for field in fields if field.default is not dataclasses.MISSING]
    assert all(f"--{name.replace('_', '-')}" in told for name in options)
    assert told.count("(required)") == len(fields) - len(options)
