"""Helpers that the command line and the browser page share."""
