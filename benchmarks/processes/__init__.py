"""The server and client processes of a measurement, and the machine that they run on."""
