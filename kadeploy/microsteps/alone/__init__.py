"""Roles in somebody's play, without a request: on its hosts, by Ansible's connections to them, and by their BMCs.

What a request would tell are options of the role. A host is changed where it is not as it shall be already, and only
then.
"""
