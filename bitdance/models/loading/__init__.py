"""Reading of model files: where they are, their configuration, and checks before they load."""
