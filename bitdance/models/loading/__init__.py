"""From files to configurations and parameters: detection, checks and folders of models."""
