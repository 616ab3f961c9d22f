"""The command line: one file a command. It prints, asks and exits; what is done is done by the floors below."""
