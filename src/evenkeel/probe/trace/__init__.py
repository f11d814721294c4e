"""Answer questions about a running kernel: count, top, latency, profile.  Standard library only, no compiler.

Nothing here is left behind: BPF programs, maps and perf events live in file descriptors and end with this process, also
when it is killed.  The one thing that would survive, an instance of tracefs, is named after its process, so that the
next one finds and removes it (:mod:`evenkeel.probe.trace.tracefs`).

One module a noun: ``bpf`` and ``assembler`` (the kernel's interface), ``templates`` (what our programs are made of),
``tables``, ``spans``, ``stacks``, ``records`` (programs, and what comes out of them), ``btf``, ``perf``, ``tracefs``
(where things are), ``sources`` (one class for each way to ask), ``question`` (operations), ``kinds`` (of questions).
Which source is used, and at what cost, is decided by `evenkeel.measure.trace`, never here.
"""
