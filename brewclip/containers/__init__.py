"""Shards that people have already: tars in WebDataset's form become a corpus, adopted as they are or written anew."""
