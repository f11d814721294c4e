"""Tests of the report: pictures, verdict, page, and the page in a real browser."""
