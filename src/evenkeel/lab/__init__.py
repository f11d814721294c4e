"""The lab: a pool of machines and a queue of steps, as one service over one database.

Module of a noun here (``claims``, ``machines``, ``submissions``) holds the functions that the REST handlers
(``lab.api``), the pages (``lab.pages``) and the local command line all call.  Who may do it is decided in these
functions and nowhere else.
"""
