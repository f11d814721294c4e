"""SARIF of real findings against the required structure of the published schema (OASIS SARIF 2.1.0)."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from evenkeel.verify.doctor import AILMENTS, examine
from evenkeel.verify.doctor.sarif import sarif
from tests.verify.doctor.tree import Tree

_TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_LOCATION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "message": _TEXT,
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "additionalProperties": False,
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "uri": {"type": "string", "format": "uri-reference", "pattern": "^[^/ ][^ ]*$"},
                        "uriBaseId": {"const": "HOST"},
                    },
                },
                "region": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"startLine": {"type": "integer", "minimum": 1}, "snippet": _TEXT},
                },
            },
        },
        "logicalLocations": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"fullyQualifiedName": {"type": "string"}},
            },
        },
    },
}
#: The objects that we write, with what SARIF requires of each and nothing that it does not know.
STRUCTURE = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "additionalProperties": False,
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "additionalProperties": False,
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string"},
                                                "shortDescription": _TEXT,
                                                "fullDescription": _TEXT,
                                                "help": _TEXT,
                                                "defaultConfiguration": {
                                                    "type": "object",
                                                    "additionalProperties": False,
                                                    "properties": {"level": _LEVEL},
                                                },
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "automationDetails": {"type": "object", "properties": {"id": {"type": "string"}}},
                    "originalUriBaseIds": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"description": _TEXT},
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "additionalProperties": False,
                            "properties": {
                                "executionSuccessful": {"type": "boolean"},
                                "toolExecutionNotifications": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["message"],
                                        "additionalProperties": False,
                                        "properties": {
                                            "message": _TEXT,
                                            "level": _LEVEL,
                                            "associatedRule": {"type": "object"},
                                        },
                                    },
                                },
                            },
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "level": _LEVEL,
                                "message": _TEXT,
                                "locations": {"type": "array", "items": _LOCATION},
                                "relatedLocations": {"type": "array", "items": _LOCATION},
                                "partialFingerprints": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string"},
                                },
                                "suppressions": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["kind"],
                                        "properties": {"kind": {"enum": ["inSource", "external"]}},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
_VALIDATOR = jsonschema.Draft202012Validator(STRUCTURE)


def broken() -> dict[str, Any]:
    """A host with faults whose evidence is a file, a place in one, a thread and a definition."""
    tree = Tree("guests")
    tree.argument("irqaffinity=0,3", "irqaffinity=0-5")
    tree.thread("qemu-system-x86", cpus="5", guest=True)
    tree.swap("/etc/libvirt/qemu/plc.xml", "vcpus='1'", "vcpus='0-2'")
    return sarif(examine(tree.facts(), "plc host"), ("D-EMULATOR",), version="1.2.3")


def test_the_structure_is_sarif() -> None:
    log = broken()
    _VALIDATOR.validate(log)
    json.dumps(log)
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [ailment.id for ailment in AILMENTS]
    assert {result["ruleId"] for result in run["results"]} >= {"D-ISO-IRQ", "D-EMULATOR", "D-XML-REFUSED"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"]


def test_a_finding_tells_its_place_level_and_whether_it_is_accepted() -> None:
    results = {result["ruleId"]: result for result in broken()["runs"][0]["results"]}
    place = results["D-ISO-IRQ"]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "proc/cmdline", "uriBaseId": "HOST"}
    assert place["region"]["snippet"]["text"] == "0-5"
    assert results["D-ISO-IRQ"]["level"] == "error"
    assert "suppressions" not in results["D-ISO-IRQ"]
    assert results["D-EMULATOR"]["suppressions"][0]["kind"] == "external"
    definition = results["D-XML-REFUSED"]["locations"][0]["physicalLocation"]
    assert definition["artifactLocation"]["uri"] == "etc/libvirt/qemu/plc.xml" and "region" not in definition


def test_what_was_not_checked_is_told() -> None:
    tree = Tree("guests")
    tree.remove("/sys/kernel/debug/sched/fair_server")
    run = sarif(examine(tree.facts(), "x"), version="1")["runs"][0]
    texts = [one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    assert len(texts) == 1 and "debugfs" in texts[0]
    assert run["results"] == []


@pytest.mark.parametrize("key", ["version", "runs"])
def test_the_structure_is_really_checked(key: str) -> None:
    log = broken()
    del log[key]
    assert not _VALIDATOR.is_valid(log)
    other = broken()
    other["runs"][0]["results"][0]["message"] = {}
    assert not _VALIDATOR.is_valid(other)
    third = broken()
    third["runs"][0]["results"][0]["colour"] = "red"
    assert not _VALIDATOR.is_valid(third)
