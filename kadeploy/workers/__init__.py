"""Who else carries out what a controller has planned: shards of attempts, on other machines."""
