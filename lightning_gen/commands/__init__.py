"""The verbs of the command line, one file each; every verb is `main(argv) -> exit code`."""
