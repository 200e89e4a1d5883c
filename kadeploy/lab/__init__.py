"""The virtual cluster: machines to try, rehearse and test on."""
