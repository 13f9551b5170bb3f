"""The ops: how each torch function propagates relevance under the rules."""
