"""The treatment of each torch function under the rules."""
