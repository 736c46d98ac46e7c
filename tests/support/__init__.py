"""What tests of the running gateway share."""
