"""The command `brewclip`: one file for each of its subcommands, which `brewclip.__main__` calls."""
