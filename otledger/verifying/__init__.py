"""The parts of `otledger.verifier`, each of which checks one thing about a partition."""
