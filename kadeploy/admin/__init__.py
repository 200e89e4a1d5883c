"""What an administrator does for a site besides operating it: begin it, check it, look at it, keep it."""
