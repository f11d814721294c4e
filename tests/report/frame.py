"""What every picture of latencies must keep: nothing of it lies outside its frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from evenkeel.report.chart import HEIGHT, WIDTH


def inside(root: ET.Element) -> None:
    """Fails at the first place that does not lie inside."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in ("x", "x1", "x2", "cx"):
                assert 0 <= float(value) <= WIDTH
            elif key in ("y", "y1", "y2", "cy"):
                assert 0 <= float(value) <= HEIGHT
            elif key == "d":
                assert all(0 <= float(number) <= WIDTH for number in re.findall(r"[-\d.]+", value))
