"""elman: a server for recurrent models."""
