"""What is asked of methods: the behaviours that each must have."""
