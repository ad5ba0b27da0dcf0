"""Questions over a whole ledger: SQL, and the caches and files that make them cheap."""
