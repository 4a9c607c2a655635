package main

import (
	"context"
	"time"
)

// system is a cluster of three that is killed and measured.
type system interface {
	name() string
	// settings are what its elections and clients are set to, for people.
	settings() []string
	// writer is a client that begins at the node of that number.
	writer(first int) (writer, error)
	// kill ends the leader with SIGKILL and returns when it was sent.
	kill(ctx context.Context) (victim string, at time.Time, err error)
	// elected waits until another than the victim is known to lead.
	elected(ctx context.Context, victim string) error
	// mend starts the victim again and waits until it has caught up.
	mend(ctx context.Context, victim string) error
	// list is every key that is there, read linearizably: IDs by name, where keys have IDs.
	list(ctx context.Context) (map[string]string, error)
	close() error
}

// writer makes one write at a time. A nil error is an acknowledgement; any
// other leaves the outcome open, and the same call may be made again.
type writer interface {
	add(ctx context.Context, w write) (id string, err error)
	remove(ctx context.Context, w write) error
	close() error
}

// write names a key and, for one attempt at it after another, the request.
type write struct {
	key     string
	request string // UUIDv7
}
