"""The page that `whence serve` opens: models explained in the browser, on this machine."""
