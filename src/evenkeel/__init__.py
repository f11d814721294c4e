"""Evenkeel: run latency-critical virtual machines on Linux, and prove that they keep their deadline.

This module holds the version and nothing else: importing it must stay free of cost, because `evenkeel --version`
and shell completion pay for it.
"""

__version__ = "0.1.0"
