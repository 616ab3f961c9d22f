"""The configuration: read from a file or from options, typed, explained.

This room reads files and never writes one, opens no connection, and shows no secret: a connection string, an alert's
URL or a key appears in no message and in no `repr`.
"""
