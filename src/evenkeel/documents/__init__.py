"""The documents that flow down the river: Facts, Site, Plan, Journal, Findings, Evidence.

Models only.  Nothing in this package may read a file, start a process or look at the clock: the same document must
mean the same thing on every machine and at any time.
"""
