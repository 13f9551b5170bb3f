"""Rows and batches of data sets, what fails among them, and how they are shared among machines."""
