"""Throwaway servers, and a story told on them with the real commands.

Never touches a server that it has not made itself.
"""
