"""What runs a network: torch or OpenVINO, one door to both."""
