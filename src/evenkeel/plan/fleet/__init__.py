"""Which guest goes to which host of a fleet.  Pure: documents in, a FleetPlan out; no clock but the one it is given."""
