"""Kadeploy: deploy operating systems on many bare machines at once, driven by Ansible."""

__version__ = "0.1.0"
