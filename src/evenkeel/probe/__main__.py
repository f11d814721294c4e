"""Run the probe: ``python3 probe.pyz`` or ``python3 -m evenkeel.probe``.  Answers on stdout until stdin ends."""

from evenkeel.probe.server import main

main()
