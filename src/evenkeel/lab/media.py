"""An image in the virtual CD drive of a BMC that speaks Redfish, as what a machine is installed from.

Puts it in, has it booted once, takes it out; whether the machine was installed by it is :mod:`evenkeel.lab.install`'s.
"""

from __future__ import annotations

from evenkeel.errors import NotAsWanted
from evenkeel.lab import install, power
from evenkeel.lab.install import NotBooted, Unable, Undo, step
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Method
from evenkeel.lab.power_drivers.redfish import Redfish
from evenkeel.lab.prepare import Say
from evenkeel.lab.touch import Touched

#: Some BMCs fetch the whole image before they answer.
INSERT_S = 300.0


class Drive:
    """A :class:`evenkeel.lab.install.Source`.  ``image``: URL that the BMC fetches."""

    method: Method | None = "bmc"
    asked = False

    def __init__(self, lab: Lab, machine: Touched, image: str) -> None:
        bmc = power.driver(lab, machine, "bmc")
        if not isinstance(bmc, Redfish):
            raise NotAsWanted(
                f"{machine.name} is to be installed from an image, and has no BMC that speaks Redfish",
                hint="give it that endpoint, or take the image out of its policy",
            )
        self.bmc, self.image = bmc, image

    def clear(self) -> None:
        self.bmc.clear(install.SET_S)

    def offer(self, say: Say, undo: list[Undo]) -> None:
        # First what says nothing of the image: a BMC that is silent now would also be without one.
        with step("asking its BMC what it boots from"):
            usual = self.bmc.usual_boot(install.SET_S)
            if not self.bmc.has_drive(install.SET_S):
                raise Unable("its BMC has no virtual CD drive")
        say(f"putting {self.image} into its virtual drive")
        eject = Undo("the image may still be in its drive", lambda: self.bmc.eject(install.SET_S), with_system=True)
        undo.append(eject)
        try:
            with step("inserting the image"):
                self.bmc.insert(self.image, INSERT_S)
        except NotAsWanted as error:
            raise NotBooted(error.message, hint=error.hint) from None
        with step("having it boot from its virtual drive"):
            undo.append(Undo("it may still be set to boot from its drive", lambda: usual(install.SET_S)))
            self.bmc.boot_from_media(install.SET_S)

    def switching(self) -> None:
        """Nobody asks for it but the BMC."""

    def refuted(self) -> str:
        return ""  # no BMC tells whether its drive was read

    def forgot(self) -> str:
        return "its BMC took the image, and did not boot it"


def empty(lab: Lab, machine: Touched) -> None:
    """Take out of the drive what a holder who is done had in it, if it is what is there yet.  Raises NotAsWanted."""
    bmc = power.driver(lab, machine, "bmc")
    if isinstance(bmc, Redfish):
        with step(f"taking {machine.medium} out of its virtual drive"):
            bmc.eject(install.SET_S, only=machine.medium)
