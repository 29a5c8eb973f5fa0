"""The command line, `growclip`, a file per subcommand. Nothing here imports torch before a subcommand runs."""
