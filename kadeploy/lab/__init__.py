"""The virtual cluster: machines to try things out and to test on."""
