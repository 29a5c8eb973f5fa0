"""What GrowCLIP is compared with."""
