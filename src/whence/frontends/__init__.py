"""The command line and the browser page."""
