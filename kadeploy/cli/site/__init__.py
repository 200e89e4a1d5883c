"""The commands of ``kadeploy-site``, one file each."""
