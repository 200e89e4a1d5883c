"""What nodes boot, and who serves it: profiles, kernels, uploaded files, the boot server."""
