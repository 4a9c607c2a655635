// Package logpb holds the messages of the replicated log and of snapshots, and
// their conversion to and from the domain's types. Messages are numbered and
// only ever appended to.
package logpb
