"""Tests of the transfer from SQL."""
