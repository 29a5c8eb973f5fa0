"""The methods that GrowCLIP is compared with."""
