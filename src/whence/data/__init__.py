"""Rows and batches of datasets, partial failures, and distribution among machines."""
