"""The web server of `whence serve`, which explains models in the browser."""
