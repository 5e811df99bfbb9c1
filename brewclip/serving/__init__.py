"""A trained system for people who only want embeddings and search; `brewclip.load` is the way in."""
