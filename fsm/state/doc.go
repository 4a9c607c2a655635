// Package state is what the cluster knows: copy-on-write tables with their
// indexes. A Txn changes a private copy of them; committing it makes a View
// that never changes again, so readers need no locks and a refused command
// leaves no trace.
package state
