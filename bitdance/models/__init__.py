"""Networks and their configurations; the state of a run is in ``bitdance.sampling``."""
