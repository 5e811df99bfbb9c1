"""Pictures and recordings as WebDataset shards: written once with a manifest, read by position."""
