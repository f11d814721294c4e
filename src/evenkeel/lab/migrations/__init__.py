"""Migrations of the database of the lab; run by lab.migrate."""
