"""The command line: one file per subcommand; no computing of its own."""
