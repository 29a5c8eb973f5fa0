"""The command line, `growclip`: a subcommand each. Nothing here imports torch before a subcommand runs."""
