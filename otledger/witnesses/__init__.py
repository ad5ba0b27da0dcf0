"""The places where a witness keeps notes: a folder elsewhere, a git repository, stamped by an authority."""
