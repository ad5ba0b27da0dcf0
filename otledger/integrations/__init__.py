"""Small bridges to other libraries. None is loaded with otledger; each needs only what its name says."""
