"""What happens from a wish to its report: requests, admission, staging, the launch, and what is written down."""
