"""The processes of a measurement, and the machine they run on."""
