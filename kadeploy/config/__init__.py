"""What the administrator wrote: the site, its clusters, their disks and time-outs."""
