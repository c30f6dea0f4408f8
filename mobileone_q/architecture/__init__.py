"""What a MobileOne is made of: blocks, named variants, and architectures from YAML."""
