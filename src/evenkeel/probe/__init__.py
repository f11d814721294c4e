"""The probe: the only code of Evenkeel that runs on a managed machine.

Standard library only, Python >= 3.9, sent over the connection as one zipapp and run from memory: nothing is installed
there and nothing stays behind.  It answers typed JSON requests (:mod:`evenkeel.probe.server`); it never builds a
shell string and never decides anything: why something is read or written is not its business.
"""
